import torch
from torch import nn

import gossamer as gs
from gossamer.data.source import as_data
from gossamer.pipeline.trial import TOURNAMENT_RATIO, Job, calibration, scorer
from gossamer.progress import silent
from gossamer.search.tournament import tournament
from gossamer.targets.export import export


def test_a_tournament_picks_the_criterion(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    program = gs.capture(network, torch.zeros(2, 3, 6, 6))
    samples = torch.randn(64, 3, 6, 6), torch.randint(0, 4, (64,))
    data = as_data((samples, samples))
    settings = gs.Settings(criterion="tournament", constraints=gs.Constraints(skip=()), mode="layerwise")
    job = Job(export(program, tmp_path / "a.onnx"), data, "top1", gs.Budget(), settings, silent)
    expected = tournament(program, calibration(data), TOURNAMENT_RATIO, mode="layerwise")
    assert "taylor" in {entrant.criterion for entrant in expected.ranking}  # the calibration part was taken from labelled data
    scores = scorer(job)
    assert scores().criterion == expected.winner.criterion
    assert scores() is scores()
