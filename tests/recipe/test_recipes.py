"""The recipes on real material, scaled down."""

from pathlib import Path

import pytest

from inheritune.recipe.load import read_recipe
from inheritune.recipe.presets import preset_path
from inheritune.run.execute import execute


@pytest.mark.shared_data
@pytest.mark.slow  # with `make recipes`
def test_the_stories_recipe_runs_on_a_model_that_somebody_else_trained(
    shared_data: Path, tmp_path: Path
) -> None:
    sets = [
        f"reference.model={shared_data / 'checkpoints' / 'stories260K'}",
        f"data.source={shared_data / 'text' / 'tinystories.jsonl'}",
        "data.val_fraction=0.01",
        "train.tokens=40960",
        "train.warmup_tokens=4096",
        "grow.max_rounds=1",
        "analyze=null",
        "report.sample_tokens=8",
    ]
    result = execute(read_recipe(preset_path("stories260k"), sets), tmp_path / "stories")
    final = result.summary
    assert (final["layers"], final["reference_layers"], result.is_missed) == (3, 5, True)
    # On TinyStories the whole model is near 1.4 nats, its first three layers untrained near 3.9.
    assert 1.2 < final["benchmark"] < 2.0
    assert final["benchmark"] < final["val_loss"] < 3.9
    assert final["gap_closed"] > 0.3
