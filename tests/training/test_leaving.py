from __future__ import annotations

import pytest

from bertds.errors import BertdsError
from bertds.training.leaving import Leaving


class Heartbeat:
    """What a rank reports to the others."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def begin_to_leave(self) -> None:
        pass

    def explain(self, error: BaseException) -> str:
        return ""

    def stop(self, failure: str) -> None:
        self.told.append(failure)


@pytest.fixture
def leaving(monkeypatch: pytest.MonkeyPatch) -> Leaving:
    monkeypatch.setattr("bertds.training.leaving.end_processes", lambda wait: None)
    made = Leaving()
    made.heartbeat = Heartbeat()  # type: ignore[assignment]
    return made


@pytest.mark.parametrize("code", [None, 0, False])
def test_a_rank_that_leaves_early_never_reports_success(leaving: Leaving, code: object) -> None:
    with (
        pytest.raises(BertdsError, match=r"called sys\.exit\(\) before the run was finished"),
        leaving,
    ):
        raise SystemExit(code)
    assert leaving.heartbeat.told == [  # type: ignore[union-attr]
        "this process called sys.exit() before the run was finished"
    ]


@pytest.mark.parametrize("error", [SystemExit(3), SystemExit("no"), KeyboardInterrupt(), OSError()])
def test_what_says_that_it_failed_is_left_as_it_is(leaving: Leaving, error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, leaving:
        raise error
    assert raised.value is error and leaving.heartbeat.told[0]  # type: ignore[union-attr]


def test_in_order_nothing_is_told(leaving: Leaving) -> None:
    with leaving:
        pass
    assert leaving.heartbeat.told == [""]  # type: ignore[union-attr]
