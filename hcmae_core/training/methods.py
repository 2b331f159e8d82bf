"""The registry of survival methods: what each needs, how it is built, what it is fitted with.

A new method is one file with a network (``models/baselines/<name>.py``) and one ``register(Method(...))`` here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hcmae_core.config import Fidelity, Profile
from hcmae_core.models.ablations import CONFIGURATIONS, ReleaseRegionSlide, build, release_hierarchical
from hcmae_core.models.baselines.abmil import GatedAttentionMIL

if TYPE_CHECKING:
    from hcmae_core.training.fit import FoldInputs, FoldOutput

Group = Literal["clinical", "omics", "image", "multimodal"]
# The kinds that can be a method's bag of vectors.
VECTORS = ("region", "region_reg", "region_hipt", "patch", "patch_features")
NEEDS = ("omics", *VECTORS, "thumbnail", "handcrafted", "clinical")


@dataclass(frozen=True)
class Sizes:
    """What a network has to fit: known only when data and fold are."""

    vector_dim: int = 0
    thumbnail: int = 0
    omics_features: int = 0
    modalities: int = 3
    clinical: int = 0


# Output of a network, time [B], event [B], settings of the fold -> scalar loss.
Loss = Callable[[Any, Tensor, Tensor, "FoldInputs"], Tensor]


@dataclass(frozen=True)
class Method:
    """One row of a comparison.

    Args:
        name, label: key and printed name; group: which data it rests on.
        inputs: argument of the network's forward -> what it is fed with (one of NEEDS, or "positions"). The mask of
            the bags is always passed as ``mask``.
        build: (sizes, profile) -> network. Without ``loss`` it is trained by the Cox loss on its output.
        loss, risk: for networks whose output is no log hazard; risk maps the output to [B], larger = worse.
        fit: instead of ``build``: everything from training rows to risks, for methods that are no networks.
        needs: what data must hold; follows from ``inputs`` for networks.
        paper: key of the paper's row, where there is one.
    """

    name: str
    label: str
    group: Group
    inputs: Mapping[str, str] = field(default_factory=dict)
    build: Callable[[Sizes, Profile], nn.Module] | None = None
    fit: Callable[[FoldInputs], FoldOutput] | None = None
    loss: Loss | None = None
    risk: Callable[[Any], Tensor] | None = None
    needs: frozenset[str] = frozenset()
    paper: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if (self.build is None) == (self.fit is None):
            raise ValueError(f"method {self.name}: give either build (a network) or fit (anything else)")
        fed = frozenset(kind for kind in self.inputs.values() if kind != "positions")
        object.__setattr__(self, "needs", self.needs | fed)
        unknown = sorted(self.needs - set(NEEDS))
        if unknown:
            raise ValueError(f"method {self.name} needs {unknown[0]!r}: choose from {', '.join(NEEDS)}")

    @property
    def bag(self) -> str | None:
        """The kind of vectors in its bags, if any."""
        return next((kind for kind in VECTORS if kind in self.needs), None)


METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a method to METHODS; raises ValueError when the name is taken."""
    if method.name in METHODS:
        raise ValueError(f"a method named {method.name!r} is registered already")
    METHODS[method.name] = method
    return method


def get_method(name: str) -> Method:
    """Look a method up; raises KeyError with the known names."""
    if name not in METHODS:
        raise KeyError(f"unknown method {name!r}: choose from {', '.join(METHODS)}")
    return METHODS[name]


def transformer_sizes(profile: Profile) -> dict[str, Any]:
    """Width, blocks, heads of the survival Transformers."""
    network = profile.survival.network
    return {"dim": network.dim, "depth": network.depth, "heads": network.heads, "mlp_ratio": network.mlp_ratio}


def _configured(name: str) -> Callable[[Sizes, Profile], nn.Module]:
    def make(sizes: Sizes, profile: Profile) -> nn.Module:
        fidelity: Fidelity = profile.fidelity
        return build(
            CONFIGURATIONS[name],
            vector_dim=sizes.vector_dim,
            thumbnail=sizes.thumbnail,
            omics_features=sizes.omics_features,
            modalities=sizes.modalities,
            transformer=transformer_sizes(profile),
            dropout=profile.survival.dropout,
            omics_dropout=profile.survival.omics_dropout,
            risk_head=fidelity.risk_head,
            slide_positions=fidelity.slide_positions,
            omics_projection=fidelity.omics_projection,
            pooler=fidelity.pooler,
        )

    return make


_SLIDE = {"thumbnails": "thumbnail", "positions": "positions"}

register(
    Method(
        "hcmae",
        "HC-MAE",
        "multimodal",
        {**_SLIDE, "region_vectors": "region", "omics": "omics"},
        _configured("hcmae"),
        paper="HC-MAE",
    )
)
register(Method("mae_pat", "MAE-Pat", "image", {"vectors": "patch"}, _configured("mae_pat"), paper="MAE-Pat"))
register(Method("mae_reg", "MAE-Reg", "image", {"vectors": "region_reg"}, _configured("mae_reg"), paper="MAE-Reg"))
register(
    Method("mae_patreg", "MAE-PatReg", "image", {"vectors": "region"}, _configured("mae_patreg"), paper="MAE-PatReg")
)
register(
    Method(
        "hc_regsli",
        "HC-RegSli",
        "image",
        {**_SLIDE, "region_vectors": "region_reg"},
        _configured("hc_regsli"),
        paper="HC-RegSli",
    )
)
register(
    Method(
        "hc_patregsli",
        "HC-PatRegSli",
        "image",
        {**_SLIDE, "region_vectors": "region"},
        _configured("hc_patregsli"),
        paper="HC-PatRegSli",
    )
)
register(Method("trans_mo", "Trans-MO", "omics", {"omics": "omics"}, _configured("trans_mo"), paper="Trans-MO"))
register(
    Method(
        "hcmae_image",
        "HC-MAE, images only",
        "image",
        {**_SLIDE, "region_vectors": "region"},
        _configured("hc_patregsli"),
        note="the same network as HC-PatRegSli",
    )
)
register(
    Method(
        "abmil_patch",
        "ABMIL on patches",
        "image",
        {"patch_vectors": "patch"},
        lambda sizes, profile: GatedAttentionMIL(
            vector_dim=sizes.vector_dim,
            hidden=profile.survival.network.dim,
            dropout=profile.survival.dropout,
            risk_head=profile.fidelity.risk_head,
        ),
    )
)
register(
    Method(
        "hc_regsli_release",
        "HC-RegSli as released",
        "image",
        {"thumbnails": "thumbnail", "region_vectors": "region_reg"},
        lambda sizes, profile: ReleaseRegionSlide(
            vector_dim=sizes.vector_dim, thumbnail=sizes.thumbnail, risk_head=profile.fidelity.risk_head
        ),
        note="no cross-attention; differs from HC-PatRegSli in architecture as well as in input",
    )
)
register(
    Method(
        "hc_patregsli_release",
        "HC-PatRegSli as released",
        "image",
        {"thumbnails": "thumbnail", "region_vectors": "region"},
        lambda sizes, profile: release_hierarchical(
            vector_dim=sizes.vector_dim, thumbnail=sizes.thumbnail, risk_head=profile.fidelity.risk_head
        ),
        note="two blocks of three heads",
    )
)


def _cox_clinical(inputs: FoldInputs) -> FoldOutput:
    """Cox on age, sex and stage, with a small ridge; what any new method has to beat."""
    from sksurv.linear_model import CoxPHSurvivalAnalysis

    from hcmae_core.training.fit import FoldOutput

    table = inputs.data.clinical
    assert table is not None
    design = _clinical_design(table, inputs.train)
    model = CoxPHSurvivalAnalysis(alpha=1.0, ties="efron")
    model.fit(design[inputs.train], inputs.outcome(inputs.train))
    return FoldOutput(model.predict(design[inputs.test]), model.predict(design[inputs.train]))


def _clinical_design(table: Any, train: NDArray[np.int64]) -> NDArray[np.float64]:
    """Age, sex, stage as numbers [n, 3], missing values at the training median, standardised on the training rows."""
    columns = np.stack([numeric_clinical(table, name) for name in ("age", "sex", "stage")], 1)
    known = columns[train]
    middle = np.array([np.nanmedian(c) if np.isfinite(c).any() else 0.0 for c in known.T])
    columns = np.where(np.isfinite(columns), columns, middle)
    spread = columns[train].std(0)
    return (columns - columns[train].mean(0)) / np.where(spread > 0, spread, 1.0)


def numeric_clinical(table: Any, name: str) -> NDArray[np.float64]:
    """A clinical column as numbers: age as it is, sex male = 1, stage I to IV = 1 to 4; unknown = NaN."""
    if name not in table.columns:
        return np.full(len(table), np.nan)
    out = np.full(len(table), np.nan)
    for row, value in enumerate(table[name].tolist()):
        text = str(value).strip().lower()
        if name == "sex" and text[:1] in ("m", "f"):
            out[row] = float(text[0] == "m")
        elif name == "stage":
            out[row] = _stage_number(text)
        elif name == "age":
            out[row] = _number(text)
    return out


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _stage_number(text: str) -> float:
    roman = text.removeprefix("stage").strip()
    for name, number in (("iv", 4.0), ("iii", 3.0), ("ii", 2.0), ("i", 1.0)):
        if roman.startswith(name):
            return number
    number = _number(roman)
    return number if 0 <= number <= 4 else float("nan")


def _coxnet_omics(inputs: FoldInputs) -> FoldOutput:
    """Elastic net Cox on the selected omics; the penalty by an inner 5-fold on the training part."""
    from sksurv.linear_model import CoxnetSurvivalAnalysis

    from hcmae_core.cohort.splits import inner_folds
    from hcmae_core.evaluation.metrics import concordance
    from hcmae_core.training.fit import FoldOutput

    assert inputs.omics is not None
    design = inputs.omics.reshape(len(inputs.omics), -1).astype(np.float64)
    design = design[:, design[inputs.train].std(0) > 0]
    time, event = inputs.data.time[inputs.train], inputs.data.event[inputs.train]
    known = {"l1_ratio": 0.5, "max_iter": 20000}
    # The longest path that converges, for all inner folds alike.
    path = CoxnetSurvivalAnalysis(n_alphas=30, alpha_min_ratio=0.05, **known)
    path.fit(design[inputs.train], inputs.outcome(inputs.train))
    alphas = path.alphas_
    inner = inner_folds(time, event, 5, [inputs.seed, 5])
    held_out = np.zeros((len(inputs.train), len(alphas)))
    scores = np.zeros(len(alphas))
    for number in range(5):
        fitted, asked = inputs.train[inner != number], inputs.train[inner == number]
        model = CoxnetSurvivalAnalysis(alphas=alphas, **known)
        model.fit(design[fitted], inputs.outcome(fitted))
        risks = design[asked] @ model.coef_
        held_out[inner == number] = risks
        if event[inner == number].any():
            scores += [concordance(time[inner == number], event[inner == number], risk) for risk in risks.T]
    best = int(np.argmax(scores))
    return FoldOutput(
        design[inputs.test] @ path.coef_[:, best],
        held_out[:, best],
        {"alpha": float(alphas[best]), "features": int((path.coef_[:, best] != 0).sum())},
    )


register(
    Method(
        "cox_clinical",
        "Cox on age, sex, stage",
        "clinical",
        fit=_cox_clinical,
        needs=frozenset({"clinical"}),
    )
)
register(Method("coxnet_omics", "Elastic net on omics", "omics", fit=_coxnet_omics, needs=frozenset({"omics"})))
