"""DINO: self-distillation without labels (Caron et al., ICCV 2021), for both stages of HIPT.

A student sees all crops of an image, a teacher (a moving average of the student) only the large ones; the student
learns to give the teacher's answer for every other crop. Centring and sharpening of the teacher's output keep both from
answering the same for every image. Crops come in as they are: of pixels for stage 1, of grids of patch vectors for
stage 2.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DINOHead(nn.Module):
    """Projection [B, in_dim] -> prototype scores [B, prototypes]: three layers, unit length, unit prototypes."""

    def __init__(self, in_dim: int, prototypes: int = 65536, hidden: int = 2048, bottleneck: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        # Weight normalisation with the gain fixed at 1: only the direction of a prototype is learnt.
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        nn.init.kaiming_uniform_(self.prototypes, a=math.sqrt(5))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.constant_(module.bias, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(self.mlp(x), dim=-1), F.normalize(self.prototypes, dim=-1))


class DINO(nn.Module):
    """Student, teacher and centre around a backbone that maps images (or grids) of any size to [B, dim].

    Args:
        backbone: its class token output is what is learnt; the teacher's copy has no gradient.
        student_temperature, teacher_temperature: of the softmax over prototypes.
        centre_momentum: of the moving mean of the teacher's scores.

    Source: Caron et al. 2021, algorithm 1; the temperatures and momenta are those of HIPT.
    """

    centre: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        *,
        prototypes: int = 65536,
        hidden: int = 2048,
        bottleneck: int = 256,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        centre_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        head = DINOHead(dim, prototypes, hidden, bottleneck)
        self.student = nn.ModuleDict({"backbone": backbone, "head": head})
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        # The teacher is the network that is kept; it never drops paths.
        self.teacher.eval()
        self.register_buffer("centre", torch.zeros(1, prototypes))
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.centre_momentum = centre_momentum

    def train(self, mode: bool = True) -> DINO:
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, crops: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Loss and the teacher's raw scores [2 * B, prototypes]; the first two crops are the global ones.

        Raises ValueError for fewer than two crops.
        """
        if len(crops) < 2:
            raise ValueError(f"DINO needs at least two global crops, got {len(crops)} crop(s)")
        student = _through(self.student, crops)
        with torch.no_grad():
            teacher = _through(self.teacher, crops[:2])
        loss = dino_loss(
            student, teacher, self.centre, self.student_temperature, self.teacher_temperature, n_crops=len(crops)
        )
        return loss, teacher

    @torch.no_grad()
    def update_centre(self, teacher: Tensor) -> None:
        """Move the centre towards the mean of the teacher's scores [N, prototypes]."""
        self.centre.lerp_(teacher.float().mean(dim=0, keepdim=True), 1 - self.centre_momentum)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Teacher = momentum * teacher + (1 - momentum) * student."""
        for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mine.lerp_(theirs, 1 - momentum)

    def cancel_prototype_gradient(self) -> None:
        """Leave the prototypes as they are in this update (the first epoch of DINO)."""
        self.student["head"].get_parameter("prototypes").grad = None


def _through(network: nn.ModuleDict, crops: Sequence[Tensor]) -> Tensor:
    """Scores of all crops, one backbone pass per crop size: [len(crops) * B, prototypes]."""
    features, start = [], 0
    for end in range(1, len(crops) + 1):
        if end == len(crops) or crops[end].shape != crops[start].shape:
            features.append(network["backbone"](torch.cat(list(crops[start:end]))))
            start = end
    return network["head"](torch.cat(features))


def dino_loss(
    student: Tensor,
    teacher: Tensor,
    centre: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    *,
    n_crops: int,
) -> Tensor:
    """Mean cross entropy between the teacher's view of a global crop and the student's of every *other* crop.

    student [n_crops * B, K] and teacher [2 * B, K] are raw scores, crop after crop. Source: Caron et al. 2021, Eq. 3.
    """
    log_student = F.log_softmax(student.float() / student_temperature, dim=-1).chunk(n_crops)
    target = F.softmax((teacher.float() - centre) / teacher_temperature, dim=-1).chunk(2)
    terms = [
        -(target[seen] * log_student[asked]).sum(dim=-1).mean()
        for seen in range(2)
        for asked in range(n_crops)
        if asked != seen
    ]
    return torch.stack(terms).mean()


def cosine_value(start: float, end: float, step: int, total: int, warmup: int = 0) -> float:
    """Linear from 0 to ``start`` over ``warmup`` steps, then half a cosine from ``start`` to ``end`` at ``total``."""
    if step < warmup:
        return start * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))


def clip_each(parameters: Sequence[nn.Parameter], limit: float) -> None:
    """Clip the gradient of every parameter tensor to norm ``limit`` on its own, as DINO does."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not grads:
        return
    for grad, norm in zip(grads, torch._foreach_norm(grads), strict=True):
        grad.mul_((limit / (norm + 1e-6)).clamp(max=1.0))


@torch.no_grad()
def health(teacher: Tensor, centre: Tensor, temperature: float, features: Tensor) -> dict[str, float]:
    """Signs of collapse, from teacher scores [N, K] and features [N, D].

    ``assignment_entropy``: entropy of the mean assignment over log K; 0 when all images share one prototype.
    ``sharpness``: 1 - mean entropy of one image's assignment over log K; 0 when every answer is uniform.
    ``feature_spread``: standard deviation of unit-length features times sqrt(D); 0 when all features are equal.
    """
    share = F.softmax((teacher.float() - centre) / temperature, dim=-1)
    top = math.log(share.shape[1])
    mean = share.mean(dim=0)
    unit = F.normalize(features.float(), dim=-1)
    return {
        "assignment_entropy": float(-(mean * mean.clamp_min(1e-12).log()).sum()) / top,
        "sharpness": 1 - float(-(share * share.clamp_min(1e-12).log()).sum(dim=-1).mean()) / top,
        "feature_spread": float(unit.std(dim=0).mean()) * math.sqrt(unit.shape[1]),
    }
