"""SwAV (Caron, Misra, Mairal, Goyal, Bojanowski, Joulin 2020, arXiv 2006.09882), in the order of its section 3.

Images are clustered while the network learns, batch by batch: the prototypes are trained like any other weights. A
large view is given a code, its share in every prototype, such that the batch uses all prototypes equally; every other
view of the same image must predict that code. No pass over all images is needed, and no memory of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.clustering.sinkhorn import sinkhorn
from deepcluster.methods.base import ExtractFeatures, Method
from deepcluster.methods.params import SwAVParams
from deepcluster.models.heads import ProjectionHead
from deepcluster.types import Batch, Clustering, Embedding, TrainStep


class SwAV(Method):
    """Predicts the code of one view from another."""

    params: SwAVParams
    assignment: Tensor
    queue: Tensor
    queued: Tensor

    def build(self) -> None:
        p, backbone = self.params, self.backbone
        self.neck = ProjectionHead(backbone.dim, p.hidden, p.feature_dim, relu=backbone.head_relu, last_relu=False)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(p.k, p.feature_dim), dim=1))
        self.own_optimizers = {"head": self.make_optimizer([*self.neck.parameters(), self.prototypes])}
        self.register_buffer("assignment", torch.full((self.n,), -1, dtype=torch.int64))
        # The last embeddings of large views, the same on all processes; `queued` were ever written.
        self.register_buffer("queue", torch.zeros(p.queue_size, p.feature_dim))
        self.register_buffer("queued", torch.zeros((), dtype=torch.int64))
        self._seen: list[Tensor] = []  # embeddings of this step's large views, from `loss` to `after_step`

    @torch.no_grad()
    def refresh(self, extract_features: ExtractFeatures, key: tuple[int, ...]) -> Clustering:
        """The nearest prototype of every image; what is trained does not depend on it."""
        extracted = extract_features()
        if not (self.assignment >= 0).any():  # the batch-norm of a new projection head has no statistics yet
            self.neck.fit_running_stats(extracted.features, self.group)
        found = self.nearest_clusters(extracted, self.prototypes.detach().clone())
        self.assignment.copy_(torch.from_numpy(found.assignment))
        return found

    def loss(self, batch: Batch, step: TrainStep) -> dict[str, Tensor]:
        """Cross-entropy between the code of each large view and what each other view predicts, equations (1) and (2),
        averaged over the pairs."""
        p = self.params
        # Frozen prototypes still take part, with a gradient of 0: all processes then wait for the same gradients.
        frozen = torch.tensor(step.epoch < p.freeze_epochs, device=self.prototypes.device)
        prototypes = torch.where(frozen, self.prototypes.detach(), self.prototypes)
        embeddings = [self.neck.directions(self.backbone(view)) for view in batch.views]
        cosines = [(z @ prototypes.T).float() for z in embeddings]
        self._seen = [z.detach() for z in embeddings[: batch.large_views]]
        terms = []
        for source in range(len(self._seen)):
            codes = self._codes(cosines[source].detach(), with_queue=step.epoch >= p.queue_epoch)
            for other in range(len(cosines)):
                if other != source:
                    log_probability = F.log_softmax(cosines[other] / p.temperature, dim=1)
                    terms.append(self.batch_group.mean(-(codes * log_probability).sum(1)))
        return {"loss": torch.stack(terms).mean()}

    @torch.no_grad()
    def _codes(self, cosines: Tensor, with_queue: bool) -> Tensor:
        """(B, K) codes of views with (B, K) cosines to the prototypes, among all views of the batch and perhaps those
        in the queue (§3.1, equation 3)."""
        rows = cosines
        if with_queue and len(self.queue):
            # Each process takes other rows of the queue.
            part = self.queue[: int(self.queued)][self.batch_group.rank :: self.batch_group.size]
            rows = torch.cat([cosines, (part @ self.prototypes.T).float()])
        return sinkhorn(rows, self.params.epsilon, self.params.iterations, self.batch_group)[: len(cosines)]

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        """Prototypes go back to unit length, and the oldest embeddings in the queue make room for the new ones."""
        super().after_step(batch)
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        size = len(self.queue)
        for seen in self._seen if size else ():
            z = self.batch_group.gather(seen)[-size:]
            place = (int(self.queued) + torch.arange(len(z), device=z.device)) % size
            self.queue[place] = z
            self.queued += len(z)
        self._seen = []

    @property
    def embedding(self) -> list[Embedding]:
        return [self.neck]

    def bytes_per_step(self, batch_size: int) -> int:
        sums = 4 * self.params.k * (self.params.iterations + 1)
        return 2 * sums + (2 * 4 * batch_size * self.params.feature_dim if self.params.queue_size else 0)
