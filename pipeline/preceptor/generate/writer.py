"""Queries by a language model under vLLM. All that this room knows of engines is here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import pyarrow as pa

from preceptor.contracts import content_id
from preceptor.judge.engine import ERROR, Row, over_long, reason_of, run_engine
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


def write_with_model(drafts: pa.Table, config: WriterConfig, *, seed: int) -> Iterator[list[Row]]:
    """Rows of `draft`, `query` and `fault`, streamed as the engine answers, each DRAFTS row once in any order.

    `query` is the reply's first line; `fault` is empty, or a countable reason why there is no query. Sampling is seeded
    by row: the same engine on the same machine says the same, another batch or machine may not.
    """
    model = resolve_backbone(config.model)
    batches = run_engine(
        drafts,
        model=model,
        engine=config.engine,
        task="generate",
        rows_per_pair=1,
        prepare=PromptWriter,
        prepare_args={"model": model, "config": config, "seed": seed},
        finish=_pick_tokens,
        columns=("draft", "tokens"),
    )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    for rows in batches:
        yield [
            {
                "draft": row["draft"],
                "query": "" if row[ERROR] else one_line(str(tokenizer.decode(row["tokens"], skip_special_tokens=True))),
                "fault": reason_of(row[ERROR]) if row[ERROR] else "",
            }
            for row in rows
        ]


def one_line(reply: str) -> str:
    """The first line of `reply` that says something, without surrounding quotation marks."""
    lines = [line.strip() for line in reply.splitlines()]
    return next((line.strip("\"'\u201c\u201d`* ") for line in lines if line), "")


class PromptWriter:
    """Turns DRAFTS into tokenised chat prompts with their sampling; an over-long one is marked and not asked."""

    def __init__(self, *, model: str, config: WriterConfig, seed: int) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.config = config
        self.seed = seed

    def __call__(self, drafts: pa.Table) -> pa.Table:
        """One row for each draft, in their order."""
        return pa.Table.from_pylist([self._row(draft) for draft in drafts.to_pylist()])

    def _row(self, draft: Mapping[str, Any]) -> Row:
        about = f"{_ABOUT[draft['origin']]}\n\n{draft['text'][:_MAX_CHARACTERS]}\n\n{_TASKS[draft['style']]}"
        asked = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": about}]
        text = self.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        token_ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return {
            "draft": draft["draft"],
            "tokenized_prompt": token_ids,
            "sampling_params": {
                "max_tokens": self.config.max_new_tokens,
                "temperature": self.config.temperature,
                "seed": int(content_id(str(self.seed), str(draft["draft"])), 16) % 2**31,
                "detokenize": False,
            },
            ERROR: over_long(len(token_ids), self.config.engine, num_new=self.config.max_new_tokens),
        }


def _pick_tokens(row: Row) -> Row:
    return {"draft": row["draft"], "tokens": [int(token) for token in row["generated_tokens"]]}
