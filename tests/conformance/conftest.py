"""Failures of the shared suite show what was compared, as those of a test file do."""

import pytest

pytest.register_assert_rewrite("runner.testing")
