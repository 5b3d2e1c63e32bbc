"""The workbench as an HTTP application: one page, its JSON, and the two things that it can change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.staticfiles import StaticFiles

from preceptor.contracts import NUM_GRADES
from preceptor.errors import PolicyError, PreceptorError
from preceptor.workbench.decisions import (
    AMEND,
    CORRECT,
    PRECEDENT,
    Amendment,
    Correction,
    Decision,
    NewPrecedent,
    Subject,
    change_of,
    read_log,
)
from preceptor.workbench.document import policy_json
from preceptor.workbench.guard import Guard
from preceptor.workbench.recalibration import Recalibrate, Recalibrator, Standing, results
from preceptor.workbench.session import Board, Session, open_board, stamp_of
from preceptor.workbench.views import brief, card_json, cards_json, cell_json, log_json, state_json
from preceptor.workbench.writes import locked, new_errors, write_all

STATIC: Final = Path(__file__).parent / "static"

Grade = Annotated[int, Field(ge=0, lt=NUM_GRADES, strict=True)]


class _Asked(BaseModel):
    """What every decision carries: its card, the state of the card that it was taken on, who takes it, and why."""

    model_config = ConfigDict(extra="forbid")

    pair_id: str
    dimension: str
    revision: str
    num_log: int
    decider: str
    why: str


class AmendBody(_Asked):
    """The anchor of one grade shall read otherwise."""

    kind: Literal["amend anchor"]
    grade: Grade
    anchor: str

    def decision(self) -> Decision:
        """The decision asked for."""
        return Amendment(grade=self.grade, anchor=_plain(self.anchor))


class PrecedentBody(_Asked):
    """The pair shall be a precedent."""

    kind: Literal["add precedent"]
    id: str
    grades: dict[str, Grade]
    shown: bool

    def decision(self) -> Decision:
        """The decision asked for."""
        return NewPrecedent(id=_plain(self.id), grades=self.grades, shown=self.shown)


class CorrectBody(_Asked):
    """Golden's grade shall be another."""

    kind: Literal["correct label"]
    grade: Grade
    declare: bool = False

    def decision(self) -> Decision:
        """The decision asked for."""
        return Correction(grade=self.grade, declare=self.declare)


DecisionBody = Annotated[AmendBody | PrecedentBody | CorrectBody, Field(discriminator="kind")]

assert (AMEND, PRECEDENT, CORRECT) == ("amend anchor", "add precedent", "correct label"), (
    "the log's words are the page's"
)


class Stale(Exception):
    """A decision on a card that has changed since it was read: `card` is how it stands, `log` what has been decided."""

    def __init__(self, card: dict[str, Any] | None, log: list[dict[str, Any]]) -> None:
        super().__init__("the card has changed")
        self.card = card
        self.log = log


def make_workbench(session: Session, *, recalibrate: Recalibrate, host: str = "127.0.0.1") -> FastAPI:
    """The application for `session`, which `recalibrate` judges again; `host` is the address that it will be bound to.

    PolicyError where a decision that was cut short cannot be finished.
    """
    with locked(session.policy):
        pass
    app = FastAPI(title="Preceptor workbench", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, host=host)
    app.add_exception_handler(PreceptorError, _refused)
    app.add_exception_handler(Stale, _stale)
    app.add_exception_handler(RequestValidationError, _invalid)
    recalibrator = Recalibrator(session, recalibrate)
    _add_pages(app, session, recalibrator)
    _add_changes(app, session, recalibrator)
    app.mount("/static", StaticFiles(directory=STATIC))
    return app


def _add_pages(app: FastAPI, session: Session, recalibrator: Recalibrator) -> None:
    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/api/state")
    def state() -> dict[str, Any]:
        return {**state_json(session, open_board(session)), "job": _job_json(recalibrator.standing())}

    @app.get("/api/agreement")
    def agreement() -> list[dict[str, Any]]:
        return [cell_json(cell) for cell in open_board(session).cells]

    @app.get("/api/cards")
    def cards() -> list[dict[str, Any]]:
        return cards_json(open_board(session))

    @app.get("/api/cards/{pair_id}/{dimension}", response_model=None)
    def card(pair_id: str, dimension: str) -> dict[str, Any] | JSONResponse:
        found = card_json(open_board(session), pair_id, dimension)
        return found if found is not None else _error(404, "NoCard", "Golden and the judge agree here now.")

    @app.get("/api/policy")
    def policy() -> dict[str, Any]:
        return policy_json(session.policy)

    @app.get("/api/decisions")
    def decisions() -> list[dict[str, Any]]:
        return [brief(entry) for entry in reversed(read_log(session.policy))]

    @app.get("/api/recalibrations")
    def recalibrations() -> dict[str, Any]:
        return {"job": _job_json(recalibrator.standing()), "results": results(session)}


def _add_changes(app: FastAPI, session: Session, recalibrator: Recalibrator) -> None:
    @app.post("/api/decisions")
    def decide(body: DecisionBody) -> dict[str, Any]:
        with locked(session.policy):
            board = open_board(session)
            _require_fresh(board, body)
            subject = Subject(
                policy=board.policy,
                line=board.lines.get(body.pair_id),
                pair_id=body.pair_id,
                dimension=body.dimension,
                decider=_plain(body.decider),
                why=_plain(body.why),
            )
            texts, entry = change_of(subject, body.decision())
            errors = new_errors(session.policy, texts)
            if errors:
                raise PolicyError(f"lint would refuse this: {errors[0]} Nothing was written.")
            if stamp_of(session, board.number) != board.stamp:
                raise PolicyError("the policy's files were edited at this very moment. Nothing was written: try again.")
            write_all(session.policy, texts)
        return {"entry": brief(entry)}

    @app.post("/api/recalibrations")
    def recalibrate() -> dict[str, Any]:
        return {"job": _job_json(recalibrator.start())}


def _require_fresh(board: Board, body: AmendBody | PrecedentBody | CorrectBody) -> None:
    """Nothing, where the card is as `body` saw it; Stale otherwise."""
    card = card_json(board, body.pair_id, body.dimension)
    if card is not None and card["revision"] == body.revision:
        return
    raise Stale(card, log_json(board.log_of(body.pair_id, body.dimension, since=body.num_log)))


def _plain(text: str) -> str:
    """`text` on one line: what is typed in a page may hold line breaks that mean nothing."""
    return " ".join(text.split())


def _job_json(standing: Standing) -> dict[str, Any]:
    return {**vars(standing)}


def _error(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status)


def _refused(request: Request, error: Exception) -> JSONResponse:
    return _error(422, type(error).__name__, str(error))


def _stale(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Stale)
    message = "This card has changed since you read it. Nothing was written: see what changed and decide again."
    content = {"error": {"code": "Stale", "message": message}, "card": error.card, "log": error.log}
    return JSONResponse(content, status_code=409)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return _error(422, "InputError", f"{where or 'the body'}: {first['msg']}.")
