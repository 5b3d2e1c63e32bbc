"""What a user sees of a running stage: plain lines, a bar on a terminal, and series over HTTP."""

from __future__ import annotations

import io
import math
import re
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from preceptor.contracts import PAIRS, make_pair, rows_to_table, write_table
from preceptor.errors import InputError
from preceptor.judge.progress import MAX_REASONS, OTHER, Bar, PlainLines, Progress, Standing, bounded, drawn
from preceptor.judge.replies import Usage
from preceptor.judge.watch import Watch, served
from preceptor.plan import choose, make_plan
from preceptor.policy import load_policy
from preceptor.recipe import POLICY_DIR
from preceptor.recipes import tiny
from preceptor.record import Record
from preceptor.running import watching
from preceptor.tally import Tally, duration

NOTHING: Mapping[str, int] = {}
USAGE = Usage(num_prompt_tokens=88_000, num_cached_tokens=66_000, num_generated_tokens=100, cost_usd=0.5)


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def capable_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")


def plain(num_rows: int = 1000, watch: Watch | None = None) -> tuple[Progress, io.StringIO, Clock]:
    sink, clock = io.StringIO(), Clock()
    progress = Progress(stage="label", num_rows=num_rows, judge="fake", sink=sink, watch=watch, clock=clock)
    return progress, sink, clock


def test_a_line_holds_rows_rate_time_left_rejects_tokens_and_cost() -> None:
    progress, sink, clock = plain()
    clock.now_s += 100
    progress.add(100, NOTHING, USAGE)
    clock.now_s += 10
    progress.add(100, {"over-long": 3, "not a grade": 5}, USAGE)
    assert sink.getvalue().splitlines()[-1] == (
        "label: 200/1,000 rows, 10.0 rows/s, 1 min 20 s left, 8 rejected (not a grade 5, over-long 3), "
        "176.0 k tokens read (75 % cached), 200 written, $1.00, after 1 min 50 s"
    )


def test_the_rate_leaves_out_the_engines_start() -> None:
    progress, _, clock = plain()
    clock.now_s += 300
    progress.add(50, NOTHING, Usage())
    assert progress.standing().rate == progress.standing().mean_rate == 0
    clock.now_s += 10
    progress.add(50, NOTHING, Usage())
    assert progress.standing().rate == progress.standing().mean_rate == 5


def test_the_rate_is_of_the_last_minute_and_the_last_lines_of_all() -> None:
    progress, sink, clock = plain(num_rows=100_000)
    progress.add(0, NOTHING, Usage())
    for _ in range(600):
        clock.now_s += 1
        progress.add(1, NOTHING, Usage())
    for _ in range(120):
        clock.now_s += 1
        progress.add(11, NOTHING, Usage())
    standing = progress.standing()
    assert standing.rate == pytest.approx(11)
    assert standing.seconds_left == pytest.approx((100_000 - 1920) / 11)
    progress.close()
    assert sink.getvalue().splitlines()[-1] == "label: 1,920/100,000 rows, 2.7 rows/s, 0 rejected, in 12 min 0 s"


def test_a_stall_shows_in_rate_and_time_left() -> None:
    progress, _, clock = plain()
    for _ in range(60):
        clock.now_s += 1
        progress.add(5, NOTHING, Usage())
    before = progress.standing()
    clock.now_s += 600
    after = progress.standing()
    assert after.rate < before.rate / 5
    assert before.seconds_left is not None and after.seconds_left is not None
    assert after.seconds_left > 5 * before.seconds_left


def test_the_samples_kept_are_bounded() -> None:
    progress, _, clock = plain(num_rows=10**6)
    for _ in range(20_000):
        clock.now_s += 0.05
        progress.add(1, NOTHING, Usage())
    assert len(progress._recent) < 70
    assert progress.standing().rate == pytest.approx(20)


def test_lines_come_every_few_seconds_and_one_at_the_end() -> None:
    progress, sink, clock = plain()
    for _ in range(100):
        clock.now_s += 0.5
        progress.add(10, NOTHING, Usage())
    assert 10 <= len(sink.getvalue().splitlines()) <= 13
    progress.close()
    progress.close()
    assert sink.getvalue().count("1,000/1,000 rows") == 1
    assert "\x1b" not in sink.getvalue()


def test_a_stage_that_fails_still_says_how_far_it_came() -> None:
    sink = io.StringIO()
    with pytest.raises(ValueError, match="broken"), Progress(stage="label", num_rows=10, sink=sink) as progress:
        progress.add(4, NOTHING, Usage())
        raise ValueError("broken")
    assert sink.getvalue().startswith("label: 4/10 rows")


def test_only_the_most_frequent_reasons_are_named() -> None:
    progress, sink, _ = plain()
    progress.add(20, {"a": 1, "b": 4, "c": 3, "d": 2}, Usage())
    progress.close()
    assert "10 rejected (b 4, c 3, d 2, ...)" in sink.getvalue()


def test_reasons_are_limited_in_number_and_length() -> None:
    progress, _, _ = plain()
    for number in range(100):
        progress.add(1, {f"reply {number} was\n" + "x" * 500: 1}, Usage())
    assert len(progress.rejected) == MAX_REASONS
    assert progress.rejected[OTHER] == 100 - (MAX_REASONS - 1)
    assert max(map(len, progress.rejected)) <= 60
    assert not any("\n" in reason for reason in progress.rejected)
    assert sum(bounded({str(number): 2 for number in range(50)}, {}).values()) == 100


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (18_600, "5 h 10 min"), (187_200, "2 d 4 h")],
)
def test_durations_are_in_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def standing(**changes: object) -> Standing:
    values: dict[str, object] = {
        "stage": "label",
        "num_rows": 1000,
        "num_done": 250,
        "rejected": {"not a grade": 5, "over-long": 3},
        "usage": USAGE,
        "elapsed_s": 60.0,
        "rate": 12.5,
        "mean_rate": 10.0,
    }
    return Standing(**{**values, **changes})  # type: ignore[arg-type]


def shown(sink: io.StringIO) -> str:
    """What a terminal was sent, without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sink.getvalue())


def test_the_bar_renders_every_figure() -> None:
    console = Console(force_terminal=True, file=io.StringIO(), width=100)
    with console.capture() as captured:
        console.print(drawn(standing()))
    bar, below = re.sub(r"\x1b\[[0-9;]*m", "", captured.get()).splitlines()
    assert bar.startswith("label ") and "━" in bar
    assert bar.rstrip().endswith("250/1,000 rows, 12.5 rows/s, 1 min 0 s left")
    assert below.strip() == (
        "8 rejected (not a grade 5, over-long 3), 88.0 k tokens read (75 % cached), 100 written, $0.50"
    )


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_bar_stays_on_two_lines(width: int) -> None:
    console = Console(force_terminal=True, file=io.StringIO(), width=width)
    with console.capture() as captured:
        console.print(drawn(standing(rejected={"a very long reason indeed " * 3: 7, "b": 1, "c": 1})))
    assert len(captured.get().splitlines()) == 2


def test_before_the_first_answer_the_bar_has_no_rate() -> None:
    console = Console(force_terminal=True, file=io.StringIO(), width=100)
    with console.capture() as captured:
        console.print(drawn(standing(num_done=0, rejected={}, usage=Usage(), rate=0.0)))
    assert "0/1,000 rows" in captured.get() and "rows/s" not in captured.get()


def test_a_terminal_gets_a_bar_that_gives_way_to_one_line() -> None:
    sink, clock = Terminal(), Clock()
    with Progress(stage="label", num_rows=4, sink=sink, clock=clock) as progress:
        assert isinstance(progress._view, Bar)
        progress.add(4, {"over-long": 1}, Usage())
        clock.now_s += 3
    text = shown(sink)
    assert "━" in text
    assert text.rstrip().endswith("label: 4/4 rows, 1 rejected (over-long 1), in 3 s")
    # The cursor that the bar hid is back.
    assert sink.getvalue().rindex("\x1b[?25h") > sink.getvalue().rindex("\x1b[?25l")


def test_a_terminal_without_a_cursor_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    progress = Progress(stage="label", num_rows=4, sink=Terminal())
    assert isinstance(progress._view, PlainLines)


Series = dict[tuple[str, tuple[str, ...]], float]


def scraped(url: str) -> Series:
    """Every sample at `url` by its name and label values, in the order of label names."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def watched() -> Iterator[tuple[Watch, str]]:
    watch = Watch()
    with served(watch, host="127.0.0.1", port=0) as url:
        yield watch, url


def test_the_same_figures_are_scraped_over_http(watched: tuple[Watch, str]) -> None:
    watch, url = watched
    progress, _, clock = plain(watch=watch)
    first = scraped(url)
    assert first["preceptor_label_rows_left", ("label",)] == 1000
    assert math.isnan(first["preceptor_label_seconds_left", ("label",)])
    assert first["preceptor_label_tokens_total", ("prompt",)] == 0
    progress.add(100, NOTHING, USAGE)
    clock.now_s += 10
    progress.add(100, {"over-long": 3, "not a grade": 5}, USAGE)
    series = scraped(url)
    assert series["preceptor_label_rows_total", ("fake", "label")] == 200
    assert series["preceptor_label_rejected_rows_total", ("over-long",)] == 3
    assert series["preceptor_label_rejected_rows_total", ("not a grade",)] == 5
    assert series["preceptor_label_tokens_total", ("prompt",)] == 176_000
    assert series["preceptor_label_tokens_total", ("cached",)] == 132_000
    assert series["preceptor_label_tokens_total", ("generated",)] == 200
    assert series["preceptor_label_cost_usd_total", ()] == 1.0
    assert series["preceptor_label_rows_left", ("label",)] == 800
    assert series["preceptor_label_rows_per_second", ("label",)] == 10
    assert series["preceptor_label_seconds_left", ("label",)] == 80
    # A stall shows without another row: gauges are asked at the scrape.
    clock.now_s += 90
    assert scraped(url)["preceptor_label_rows_per_second", ("label",)] == 1


def test_counters_add_up_over_stages_and_gauges_end_with_theirs(watched: tuple[Watch, str]) -> None:
    watch, url = watched
    for stage in ("calibrate", "label"):
        with Progress(stage=stage, num_rows=10, judge="fake", sink=io.StringIO(), watch=watch) as progress:
            progress.add(10, {"over-long": 1}, USAGE)
    series = scraped(url)
    assert series["preceptor_label_rows_total", ("fake", "calibrate")] == 10
    assert series["preceptor_label_rows_total", ("fake", "label")] == 10
    assert series["preceptor_label_rejected_rows_total", ("over-long",)] == 2
    assert not [name for name, _ in series if name in ("preceptor_label_rows_left", "preceptor_label_seconds_left")]


def test_reasons_never_become_too_many_series(watched: tuple[Watch, str]) -> None:
    watch, url = watched
    for number in range(3):
        with Progress(stage="label", num_rows=100, sink=io.StringIO(), watch=watch) as progress:
            for row in range(100):
                progress.add(1, {f"stage {number} row {row}": 1}, Usage())
    rejected = {labels: v for (name, labels), v in scraped(url).items() if name.endswith("rejected_rows_total")}
    assert len(rejected) == MAX_REASONS
    assert sum(rejected.values()) == 300


def test_two_watches_do_not_know_each_other() -> None:
    one, other = Watch(), Watch()
    one.count(stage="label", judge="fake", num_rows=5, rejected={}, usage=Usage())
    assert other.registry.get_sample_value("preceptor_label_rows_total", {"stage": "label", "judge": "fake"}) is None


def test_the_address_ends_with_the_body_and_a_taken_port_is_said_in_one_line() -> None:
    with watching(host="127.0.0.1", port=None) as none:
        assert none is None
    with served(Watch(), host="127.0.0.1", port=0) as url:
        port = int(url.split(":")[2].split("/")[0])
        with pytest.raises(InputError, match=r"cannot be bound .* Choose another --metrics-port") as caught:
            served(Watch(), host="127.0.0.1", port=port).__enter__()
        assert "\n" not in str(caught.value)
    with pytest.raises(OSError):
        scraped(url)
    # Free again at once.
    with served(Watch(), host="127.0.0.1", port=port) as again:
        assert again == url


def test_a_plans_label_step_counts_every_row_in_its_watch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], watched: tuple[Watch, str]
) -> None:
    watch, url = watched
    pairs = [
        make_pair(f"query {number // 4}", "a welder", f"posting {number}", slice="s", split="train")
        for number in range(40)
    ]
    write_table(rows_to_table(pairs, PAIRS), tmp_path / "corpus" / "pairs" / "part.parquet", PAIRS)
    corpus = Record(stage="market", version="v1", fingerprint="c", path=tmp_path / "corpus", config={})
    policy = load_policy(POLICY_DIR)
    calibration = Record(
        stage="calibrate",
        version="v1",
        fingerprint="k",
        path=tmp_path / "calibrate",
        config={},
        policy_version=policy.version,
        metrics={"judge_id": "fake:fake", "passed": True},
    )
    (step,) = choose(make_plan(tiny(), watch=watch), only="label", start=None)
    record = step.run({"corpus": corpus, "calibrate": calibration}, tmp_path / "label" / "v1")
    num_asked = len(policy.rubric.names)
    assert record.num_rows_kept == 40 * (num_asked + 1)
    assert scraped(url)["preceptor_label_rows_total", ("fake:fake", "label")] == 40 * num_asked
    assert f"label: {40 * num_asked}/{40 * num_asked} rows" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("256.1.1.1", 0)])
def test_an_address_that_cannot_be_is_an_input_error(host: str, port: int) -> None:
    with pytest.raises(InputError, match="--metrics-port"):
        served(Watch(), host=host, port=port).__enter__()


def test_a_pace_speaks_every_few_seconds_and_not_of_what_is_done_sooner() -> None:
    sink, clock = io.StringIO(), Clock()
    tally = Tally(label="student scores", total=1000, unit="pairs", sink=sink, clock=clock)
    for _ in range(3):
        clock.now_s += 1
        tally.add(10)
    assert sink.getvalue() == ""
    clock.now_s += 27
    tally.add(70)
    clock.now_s += 1
    tally.add(100)
    assert sink.getvalue() == "student scores: 100/1,000 pairs, 3.1/s, 4 min 50 s left\n"


def test_a_pace_tells_no_rate_before_there_is_one() -> None:
    sink, clock = io.StringIO(), Clock()
    tally = Tally(label="embedding", total=64, unit="texts", sink=sink, clock=clock)
    clock.now_s += 60
    tally.add(64)
    assert sink.getvalue() == "embedding: 64/64 texts\n"
