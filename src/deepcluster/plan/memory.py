"""Bytes that a run holds in memory and on disk, item by item, of its first process, which has the most."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deepcluster.clustering.assign import GPU_SCORES
from deepcluster.clustering.points import BLOCK_NUMBERS
from deepcluster.features.extract import IN_MEMORY
from deepcluster.plan.job import Job

LABEL = 8  # bytes of a label or a position
BATCH = 256  # images described at once
AHEAD = 3  # batches that lie ready or are in work
SCREEN_NUMBERS = 1 << 28  # rounded rows that k-means keeps between rounds, at most

ALWAYS, TRAINING, FEATURES, GROUPING = "always", "training", "features", "clustering"


@dataclass(frozen=True)
class Item:
    """Something that takes room.

    Attributes:
        name: what it is.
        bytes: how much.
        place: "device" (a GPU's memory), "memory" (the machine's), "disk".
        when: "always", or "training", "features" or "clustering", which follow each other; files: "run" (stays in the
            run folder), "scratch" (removed), "cache" (shared by runs, one on each machine).
    """

    name: str
    bytes: int
    place: str
    when: str


def memory(job: Job, resident: float) -> list[Item]:
    """What one process holds; where there is no GPU, all of it in the machine's memory."""
    items = [Item("the process itself", round(resident), "memory", ALWAYS)]
    items += [*_always(job), *_training(job), *_features(job), *_grouping(job)]
    if job.device == "cpu":
        items = [Item(item.name, item.bytes, "memory", item.when) for item in items]
    return [item for item in items if item.bytes]


def peak(items: Iterable[Item], place: str) -> tuple[int, str]:
    """The most bytes at once in `place`, and when."""
    here = [item for item in items if item.place == place]
    base = sum(item.bytes for item in here if item.when == ALWAYS)
    phases = {when: sum(item.bytes for item in here if item.when == when) for when in (TRAINING, FEATURES, GROUPING)}
    when = max(phases, key=lambda phase: phases[phase])
    return base + phases[when], when


def classifier_numbers(job: Job) -> int:
    """Trained numbers of all classifiers together."""
    if job.method == "odc":
        return job.k * (job.feature_dim + 1)
    if job.method == "deepercluster":
        supers = job.supers * job.turns
        return supers * (job.network.dim + 1) + supers * job.per_super * (job.network.dim + 1)
    return job.clusterings * job.k * (job.network.dim + 1)


def own_numbers(job: Job) -> int:
    """Trained numbers of the classifiers of the process that has the most."""
    if job.method != "deepercluster":
        return classifier_numbers(job)
    size = job.network.dim + 1
    return job.supers * job.turns * size + job.heads * job.per_super * size


def neck_numbers(job: Job) -> int:
    """Trained numbers of ODC's neck."""
    if job.method != "odc":
        return 0
    return job.hidden * (job.network.dim + 1) + 2 * job.hidden + job.feature_dim * (job.hidden + 1)


def per_image(job: Job) -> dict[str, int]:
    """Bytes that the method keeps of every image of all, by name of the buffer."""
    if job.method == "odc":
        return {"assignment": LABEL, "told": LABEL}
    return {"assignments": LABEL * job.clusterings}


def centroid_bytes(job: Job) -> int:
    """The method's own of each cluster: centroids, and what goes with them."""
    if job.method == "odc":
        return job.k * (job.feature_dim * (4 + 8) + 1)
    if job.method == "deepercluster":
        return (job.k + job.supers) * job.width * 4 + job.k
    return job.clusterings * job.k * (job.width + 1) * 4


def table_bytes(job: Job) -> int:
    """The features of one process's images."""
    return job.share * job.network.dim * 4


def _always(job: Job) -> list[Item]:
    net = job.network
    trained = net.parameters + neck_numbers(job)
    items = [
        Item("network", (net.state + 4 * neck_numbers(job)) * (2 if job.ema_backbone else 1), "device", ALWAYS),
        Item("network: optimizer", 4 * trained * job.moments, "device", ALWAYS),
        Item("classifiers", 4 * own_numbers(job), "device", ALWAYS),
        Item("classifiers: optimizer", 4 * own_numbers(job) * job.head_moments, "device", ALWAYS),
        Item("labels of all images", job.images * sum(per_image(job).values()), "device", ALWAYS),
        Item("centroids", centroid_bytes(job), "device", ALWAYS),
        Item("index of all images", job.images * (12 + LABEL if job.cached == "no" else 4 * LABEL), "memory", ALWAYS),
    ]
    if job.cached == "memory":
        items.append(Item("decoded images", job.images * job.picture, "memory", ALWAYS))
    if job.method == "odc":
        items.append(Item("features of own images", job.share * job.feature_dim * 4, "device", ALWAYS))
        items.append(Item("members of clusters", job.images * 2 * LABEL, "memory", ALWAYS))
    return items


def _training(job: Job) -> list[Item]:
    net, half = job.network, 2 if job.half else 1
    view = 3 * job.view_side**2 * 4
    columns = logits(job)
    return [
        Item("gradients", 4 * (net.parameters + neck_numbers(job) + own_numbers(job)), "device", TRAINING),
        Item(
            "activations (estimate)",
            (job.part * job.views * net.kept + net.widest * job.part) // half,
            "device",
            TRAINING,
        ),
        Item("classifiers: outputs", round(4 * 3 * columns), "device", TRAINING),
        Item("batches made ahead", AHEAD * job.part * job.views * view, "device", TRAINING),
        Item("order of the epoch", job.images * LABEL, "memory", TRAINING),
    ]


def logits(job: Job) -> float:
    """Numbers that this process's classifiers put out in a step."""
    if job.method != "deepercluster":
        return job.part * job.views * job.k * job.clusterings
    classes = job.supers * job.turns
    return job.views * (job.part * classes + job.heads * job.batch / classes * job.per_super)


def _features(job: Job) -> list[Item]:
    batch, half = min(BATCH, job.share), 2 if job.half else 1
    table = table_bytes(job)
    return [
        Item("network: folded copy", job.network.state, "device", FEATURES),
        Item("activations (estimate)", 2 * batch * job.network.widest // half, "device", FEATURES),
        Item("batches made ahead", AHEAD * batch * 3 * job.side**2 * 4, "device", FEATURES),
        Item("features of own images", table if table <= IN_MEMORY else 0, "memory", FEATURES),
        Item("last labels, to compare", job.images * LABEL, "memory", FEATURES),
    ]


def _grouping(job: Job) -> list[Item]:
    table, width = table_bytes(job), job.grouped_width
    if job.method == "odc" and not job.width:
        table = job.share * job.feature_dim * 4
    items = [
        Item("features of own images", table if table <= IN_MEMORY else 0, "memory", GROUPING),
        Item("last labels, to compare", job.images * LABEL, "memory", GROUPING),
        Item("new labels and distances", job.images * (3 * LABEL + 4), "memory", GROUPING),
    ]
    if job.width:
        rows = job.share * width * 4
        items += [
            Item("covariance and directions", 3 * 8 * job.network.dim**2, "device", GROUPING),
            Item("whitened features", rows, "device", GROUPING),
        ]
        if job.device != "cpu":
            items.append(Item("whitened features, copied", rows, "memory", GROUPING))
    if job.grouping == "pic":
        # the first process gathers all rows, and every row has five neighbors, linked both ways
        items.append(
            Item("PIC: all rows and their graph", job.images * (4 * width + 10 * 12 + 6 * 12), "memory", GROUPING)
        )
        return items
    return items + _kmeans(job)


def _kmeans(job: Job) -> list[Item]:
    """Of the largest k-means, that within the super-clusters if there are any."""
    rows, k, width = job.share // job.supers, job.per_super, job.grouped_width
    tallies = 8 * k * width * (1 if job.alone else 2)
    means = k * width * (8 + 3 * 4)
    items = [
        Item("k-means: sums and centroids", tallies + means, "device", GROUPING),
        Item("k-means: a block of rows", 2 * 4 * min(BLOCK_NUMBERS, rows * width), "device", GROUPING),
        Item("k-means: labels", rows * 2 * LABEL, "device", GROUPING),
    ]
    if job.supers > 1 and rows * width * 4 <= IN_MEMORY:
        items.append(Item("rows of one super-cluster", rows * width * 4, "memory", GROUPING))
    if job.device != "cpu":
        items.append(Item("k-means: scores", 2 * 4 * GPU_SCORES, "device", GROUPING))
    else:
        rounded = rows * width if rows * width <= SCREEN_NUMBERS else 0
        items.append(Item("k-means: rounded rows", rounded + rows * 28, "device", GROUPING))
    return items


def disk(job: Job) -> list[Item]:
    """Files that one process writes: the first, which writes those of all."""
    table = table_bytes(job)
    whole = checkpoint_bytes(job)
    kept = job.epochs // job.keep_every if job.keep_every else 0
    rows = job.share // job.supers * job.grouped_width * 4
    items = [
        Item("last.ckpt", whole, "disk", "run"),
        Item("last.ckpt while it is replaced", whole, "disk", "scratch"),
        Item(f"epoch-NNNN.ckpt, {kept} of them", whole * max(0, kept), "disk", "run"),
        Item("model.safetensors", model_bytes(job), "disk", "run"),
        Item("assignment.npy, distance.npy", job.images * (LABEL + 4), "disk", "run"),
        Item("features, memory-mapped", table if table > IN_MEMORY else 0, "disk", "scratch"),
        Item("decoded images", job.images * job.picture if job.cached == "disk" else 0, "disk", "cache"),
    ]
    if job.supers > 1 and rows > IN_MEMORY:
        items.append(Item("rows of one super-cluster", rows, "disk", "scratch"))
    return [item for item in items if item.bytes]


def whitening_bytes(job: Job) -> int:
    """The whitening as a checkpoint has it."""
    return (job.network.dim * 4 + job.width * (job.network.dim * 4 + 8)) if job.width and job.method != "odc" else 0


def checkpoint_bytes(job: Job) -> int:
    """last.ckpt: everything of all processes."""
    net = job.network
    trained, heads = net.parameters + neck_numbers(job), classifier_numbers(job)
    weights = net.state * (2 if job.ema_backbone else 1) + 4 * (neck_numbers(job) + heads)
    labels = job.images * sum(per_image(job).values())
    features = job.images * job.feature_dim * 4 if job.method == "odc" else 0
    moments = 4 * (trained * job.moments + heads * job.head_moments)
    return weights + moments + labels + features + centroid_bytes(job) + whitening_bytes(job)


def model_bytes(job: Job) -> int:
    """model.safetensors: what assigns new images."""
    width = job.feature_dim if job.method == "odc" else job.width
    tree = job.supers * width * 4 + job.k if job.method == "deepercluster" else 0
    return job.network.state + 4 * neck_numbers(job) + whitening_bytes(job) + job.k * width * 4 + tree
