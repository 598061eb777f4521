"""What holds for every test of the terminal chat."""

import pytest
from textual.app import App

from tests.patience import PATIENCE_SECONDS


@pytest.fixture(autouse=True)
def _notices_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine they would be gone before a test looks."""
    monkeypatch.setattr(App, "NOTIFICATION_TIMEOUT", PATIENCE_SECONDS)
