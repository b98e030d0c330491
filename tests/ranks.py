"""What test_distributed.py has every rank do: `torchrun --nproc-per-node N tests/ranks.py FOLDER`; rank r leaves r.json."""

import hashlib
import json
import sys
from dataclasses import astuple, replace
from pathlib import Path

import torch

from fastdqn import distributed
from fastdqn.config import load_preset
from fastdqn.distributed import Bucket, Ranks
from fastdqn.learner import Learner
from fastdqn.networks import QNetwork
from fastdqn.pipeline import Pipeline
from fastdqn.priorities import Priorities
from fastdqn.run import Run
from fastdqn.trainer import step_group

BATCH, ACTIONS, WIDTH = 24, 3, 5


def learner(seed: int) -> Learner:
    torch.manual_seed(seed)
    network = QNetwork((WIDTH,), ACTIONS, encoder="mlp", hidden_size=16, dueling=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, fused=True)
    return Learner(network, optimizer, double=True, max_grad_norm=1.0, seed=0, compile=False)


def batches(updates: int) -> list[tuple[torch.Tensor, ...]]:
    draw = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(BATCH, WIDTH, generator=draw), torch.randint(ACTIONS, (BATCH,), generator=draw),
            torch.randn(BATCH, generator=draw), torch.rand(BATCH, generator=draw),
            torch.randn(BATCH, WIDTH, generator=draw), torch.rand(BATCH, generator=draw),
        )
        for _ in range(updates)
    ]  # fmt: skip


def difference_from_the_whole_batch(ranks: Ranks) -> float:
    """The largest difference of any weight after 20 updates, to one process with the concatenated batches."""
    whole, part = learner(7), learner(7 + ranks.rank)
    ranks.share_(part.shared())
    bucket, size = Bucket(part.parameters), BATCH // ranks.size
    for batch in batches(20):
        whole.update(*batch)
        parts, sizes = part.gradients(*(tensor[ranks.rank * size :][:size] for tensor in batch))
        bucket.fill(parts)
        ranks.mean_(bucket.flat)
        part.step(bucket.views, sizes)
    assert whole.read_metrics()[0].keys() == part.read_metrics()[0].keys()
    return max(float((a - b).abs().max()) for a, b in zip(whole.parameters, part.parameters, strict=True))


def difference_of_importance_weights(ranks: Ranks) -> float:
    """Between what scales each rank's losses and Schaul's formula over the whole batch, of P as the job draws it."""
    priorities = Priorities(500, exponent=0.7, seed=ranks.seed(1), device=torch.device("cpu"))
    priorities.importance_exponent.fill_(0.6)
    error = torch.rand(500, generator=torch.Generator().manual_seed(ranks.rank)) * (1 + 9 * ranks.rank)
    priorities.update(torch.arange(500), error, torch.ones(500, dtype=torch.bool))
    row, weight = priorities.draw(64)
    scaled = weight * (ranks.smallest(priorities.least) / priorities.least) ** 0.6
    chance = priorities.weight[row].double() / priorities.weight.sum() / ranks.size
    everyones = [torch.zeros_like(chance) for _ in range(ranks.size)]
    torch.distributed.all_gather(everyones, chance)
    expected = (torch.cat(everyones).min() / chance) ** 0.6
    assert scaled.max() <= 1.0 + 1e-6
    return float((scaled - expected).abs().max())


def training(updates: int, folder: Path) -> dict:
    """A prioritised Catch run of some updates: digests of weights and moments, and what was counted."""
    config = replace(
        load_preset("catch"), prioritized=True, num_envs=16, compile=False, torch_threads=1, env_threads=1, ui="quiet",
        acting_ema=0.5,
        run_dir=str(folder / "run"),
    )  # fmt: skip
    run = Run(config, ["test"])
    run.envs.start()
    with run:
        while run.clock.updates < updates:
            step_group(run)
            if run.logging:
                run.log()
    state = run.learner.state()
    digest = hashlib.sha256()
    for tree in (state["model"], state["target"], state.get("acting", {}), state["optimizer"]):
        for tensor in tree.values():
            digest.update(tensor.detach().contiguous().numpy().tobytes())
    own = run.ring.storage["frame"].numpy().tobytes()
    return {
        "digest": digest.hexdigest(), "games": hashlib.sha256(own).hexdigest(), "updates": run.clock.updates,
        "env_steps": run.clock.env_steps, "rows": int(run.ring.count.sum()), "episodes": run.episodes.episodes,
        "folder": str(run.folder.path), "target_syncs": run.clock.target_syncs,
        "batch_size": run.pipeline._batch_size, "learning_starts": run.schedule.learning_starts,
        "weights": 0 if run.ring.priorities is None else len(run.ring.priorities.weight.unique()),
    }  # fmt: skip


def averages_of_a_pipeline_are_weighed(ranks: Ranks) -> bool:
    """Pipeline._average as a whole: the gradient of a rank whose smallest chance is above the job's counts for less."""

    class Ring:
        priorities = Priorities(10, exponent=1.0, seed=0, device=torch.device("cpu"))

    pipeline = Pipeline.__new__(Pipeline)
    pipeline._ranks, pipeline._ring = ranks, Ring  # type: ignore[assignment]
    pipeline._bucket = Bucket([torch.zeros(2)])
    Ring.priorities.importance_exponent.fill_(0.5)
    Ring.priorities.least.fill_(0.01 * (1 + ranks.rank))
    pipeline._bucket.fill([torch.ones(2), torch.tensor(4.0), torch.tensor(8.0), torch.tensor(9.0)])
    pipeline._average()
    mean = sum((1 / (1 + rank)) ** 0.5 for rank in range(ranks.size)) / ranks.size
    return torch.allclose(pipeline._bucket.flat, torch.tensor([mean, mean, 4 * mean, 8.0, 9.0]))


def agreed(ranks: Ranks) -> list[tuple]:
    """Three answers: to rank 1 asking to stop and all but the first to log; then to the first asking to log."""
    said = [
        ranks.agree(ranks.rank + 1, stop=ranks.rank == 1, log=not ranks.first),
        ranks.agree(0, stop=False, log=ranks.first),
        ranks.agree(0, stop=False, log=False),
    ]
    return [astuple(answer) for answer in said]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ranks = distributed.join(cuda=False)
    found = {
        "update": difference_from_the_whole_batch(ranks),
        "importance": difference_of_importance_weights(ranks),
        "weighed": averages_of_a_pipeline_are_weighed(ranks),
        "agreed": agreed(ranks),
        "seed": ranks.seed(5),
        "gathered": ranks.gather([[float(ranks.rank), float(row)] for row in range(ranks.rank)], 2),
    }
    found |= training(200, folder)  # leaves the group
    (folder / f"{ranks.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
