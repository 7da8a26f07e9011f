from __future__ import annotations

import pytest

from bertds.errors import BertdsError, StoppedError, StoreError
from bertds.training.leaving import Leaving


class Heartbeat:
    """What a rank reports to the others."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.codes: list[int] = []
        self.explanation: BertdsError | None = None

    def begin_to_leave(self) -> None:
        pass

    def explain(self, error: BaseException) -> BertdsError | None:
        return self.explanation

    def stop(self, failure: str, code: int) -> None:
        self.told.append(failure)
        self.codes.append(code)


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
def test_an_error_with_its_own_report_is_raised_unchanged(
    leaving: Leaving, error: BaseException
) -> None:
    with pytest.raises(type(error)) as raised, leaving:
        raise error
    assert raised.value is error and leaving.heartbeat.told[0]  # type: ignore[union-attr]


def test_the_others_stop_early_with_a_rank_whose_store_gave_up(leaving: Leaving) -> None:
    with pytest.raises(StoreError), leaving:
        raise StoreError("s3://corpus does not answer")
    assert leaving.heartbeat.told == ["s3://corpus does not answer"]  # type: ignore[union-attr]
    assert leaving.heartbeat.codes == [75]  # type: ignore[union-attr]


@pytest.mark.parametrize("peer", [StoppedError("rank 1 left"), BertdsError("rank 1 is lost")])
def test_a_collective_that_a_peer_broke_ends_with_the_peers_code(
    leaving: Leaving, peer: BertdsError
) -> None:
    leaving.heartbeat.explanation = peer  # type: ignore[union-attr]
    with pytest.raises(type(peer)) as raised, leaving:
        raise RuntimeError("Connection closed by peer")
    assert raised.value is peer
    assert leaving.heartbeat.codes == [peer.exit_code]  # type: ignore[union-attr]


def test_without_faults_nothing_is_reported(leaving: Leaving) -> None:
    with leaving:
        pass
    assert leaving.heartbeat.told == [""]  # type: ignore[union-attr]
