"""Queries by a language model under vLLM. All that this room knows of engines is here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

import pyarrow as pa

from preceptor.contracts import content_id
from preceptor.errors import StageFailed, last_line
from preceptor.judge.engine import Engine, answered, over_long, reason_of, usage_of, workers_of
from preceptor.judge.replies import Usage
from preceptor.judge.tickets import MAX_RESTARTS
from preceptor.judge.vllm_judge import PromptTokens
from preceptor.ranker.backbones import resolve_backbone
from preceptor.recipe import QueryStyle, WriterConfig

_SYSTEM: Final = (
    "You write what a person types into the search box of a job site. Answer with the search text alone, on one line, "
    "without quotation marks, names, phone numbers or e-mail addresses."
)
_TASKS: Final[Mapping[QueryStyle, str]] = {
    "title": "Write a search of two to four words that names the job.",
    "title_place": "Write a search of three to six words that names the job and the place.",
    "skills": "Write a search of two to five words that names skills and not the job's title.",
    "sentence": "Write one natural sentence in which the person says what work they are looking for.",
    "aspirational": "Write one sentence in which the person says what they want to become in a few years.",
}
_ABOUT: Final = {
    "postings": "The person would be happy to find this posting:",
    "profiles": "The person describes themselves so:",
}
_MAX_CHARACTERS: Final = 1200
_DRAFTS_PER_TASK: Final = 64

Row = Mapping[str, Any]


def write_with_model(drafts: pa.Table, config: WriterConfig, *, seed: int) -> Iterator[list[dict[str, Any]]]:
    """Rows of `draft`, `query` and `fault`, streamed as the engines answer, each DRAFTS row once in any order.

    `query` is the reply's first line; `fault` is empty, or a countable reason why there is no query. Sampling is seeded
    by row: the same engine on the same machine says the same, another batch or machine may not. Raises StageFailed
    where the engines cannot run.
    """
    import ray.data
    import ray.exceptions

    model = resolve_backbone(config.model)
    workers = workers_of(model, config.engine)
    slices = [drafts.slice(start, _DRAFTS_PER_TASK) for start in range(0, max(drafts.num_rows, 1), _DRAFTS_PER_TASK)]
    written = ray.data.from_arrow(slices).map_batches(
        QueryWriter,
        fn_constructor_args=(model, config, seed),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers.num_actors),
        num_cpus=workers.cpus,
        num_gpus=workers.gpus or None,
        max_restarts=MAX_RESTARTS,
        max_task_retries=-1,
        runtime_env={"env_vars": dict(workers.env)},
    )
    try:
        for batch in written.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield cast(pa.Table, batch).to_pylist()
    except (ray.exceptions.RayError, RuntimeError, ValueError) as error:
        reason = last_line(error)
        raise StageFailed(
            f"the writer {config.model} stopped: {reason}. What is written is kept: mend the cause and run again."
        ) from error


def one_line(reply: str) -> str:
    """The first line of `reply` that says something, without surrounding quotation marks."""
    lines = [line.strip() for line in reply.splitlines()]
    return next((line.strip("\"'\u201c\u201d`* ") for line in lines if line), "")


class QueryWriter:
    """An actor with an engine that writes a query for each draft."""

    def __init__(self, model: str, config: WriterConfig, seed: int) -> None:
        from transformers import AutoTokenizer

        self.model = model
        self.config = config
        self.seed = seed
        self.tokens = PromptTokens(AutoTokenizer.from_pretrained(model))
        self.engine: Engine | None = None

    async def __call__(self, drafts: pa.Table) -> pa.Table:
        """A row of draft, query and fault for each of DRAFTS, in their order."""
        if self.engine is None:
            self.engine = Engine(model=self.model, config=self.config.engine, task="generate")
        rows = drafts.to_pylist()
        found, _ = await answered(self.engine, [self._write(self.engine, draft) for draft in rows])
        return pa.Table.from_pylist(
            [
                {"draft": draft["draft"], "query": "", "fault": reason_of(f"{type(said).__name__}: {said}")}
                if isinstance(said, Exception)
                else {"draft": draft["draft"], **said}
                for draft, said in zip(rows, found, strict=True)
            ]
        )

    async def _write(self, engine: Engine, draft: Row) -> tuple[dict[str, str], Usage]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        about = f"{_ABOUT[draft['origin']]}\n\n{draft['text'][:_MAX_CHARACTERS]}\n\n{_TASKS[draft['style']]}"
        token_ids = self.tokens.of_chat([{"role": "system", "content": _SYSTEM}, {"role": "user", "content": about}])
        too_long = over_long(len(token_ids), self.config.engine, num_new=self.config.max_new_tokens)
        if too_long:
            return {"query": "", "fault": reason_of(too_long)}, Usage()
        params = SamplingParams(
            max_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            seed=int(content_id(str(self.seed), str(draft["draft"])), 16) % 2**31,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await engine.ask(token_ids, params)
        said = output.outputs[0]
        return {"query": one_line(said.text), "fault": ""}, usage_of(output, num_generated=len(said.token_ids))
