"""HC-MAE and the configurations of Table III in the registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from hcmae.config import Fidelity, Profile
from hcmae.survival.fit import fit_network
from hcmae.survival.fold import FoldInputs, FoldOutput
from hcmae.survival.methods import METHODS, Method, Sizes, register
from hcmae_core.ablations import CONFIGURATIONS, ReleaseRegionSlide, build, release_hierarchical
from hcmae_core.baselines.abmil import GatedAttentionMIL
from hcmae_core.baselines.hipt import HIPTIntegration
from hcmae_core.transformer import Size


def transformer_sizes(profile: Profile) -> Size:
    """Size of the survival Transformers."""
    network = profile.survival.network
    return Size(network.dim, network.depth, network.heads, network.mlp_ratio)


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


def integration_network(sizes: Sizes, profile: Profile) -> nn.Module:
    """HC-MAE's network with region vectors in the place of thumbnails, for HIPT's vectors or MAE-PatReg's."""
    fidelity = profile.fidelity
    return HIPTIntegration(
        sizes.vector_dim,
        sizes.omics_features,
        sizes.modalities,
        transformer_sizes(profile),
        profile.survival.dropout,
        omics_dropout=profile.survival.omics_dropout,
        omics_projection=fidelity.omics_projection,
        pooler=fidelity.pooler,
        risk_head=fidelity.risk_head,
    )


_NETWORK = ("survival.network", "survival.dropout", "fidelity.risk_head")
_POOLED = _NETWORK[1:]
_HIERARCHICAL = (*_NETWORK, "fidelity.slide_positions")
_OMICS = (*_NETWORK, "survival.omics_dropout", "fidelity.omics_projection")
# What that network reads: all that HC-MAE reads but for the places of thumbnails.
INTEGRATION = (*_OMICS, "fidelity.pooler")
_SLIDE = {"thumbnails": "thumbnail", "positions": "positions"}
_WHOLE = {**_SLIDE, "region_vectors": "region", "omics": "omics"}

register(
    Method(
        "hcmae",
        "HC-MAE",
        "multimodal",
        _WHOLE,
        _configured("hcmae"),
        paper="HC-MAE",
        settings=(*_HIERARCHICAL, *_OMICS, "fidelity.pooler"),
    )
)


# The survival stage as the paper describes it, by setting; sizes, rates and epochs are the profile's for all methods.
PAPER_STAGE = {
    **{f"fidelity.{name}": getattr(Fidelity.preset("paper"), name) for name in ("omics_projection", "pooler")},
    **{f"fidelity.{name}": getattr(Fidelity.preset("paper"), name) for name in ("risk_head", "slide_positions")},
    **{f"fidelity.{name}": getattr(Fidelity.preset("paper"), name) for name in ("cox_divisor", "drop_last_group")},
    **{f"survival.{name}": 0.0 for name in ("dropout", "omics_dropout", "region_dropout")},
    "survival.scale_vectors": False,
    "survival.ensemble": 1,
}


def paper_stage(profile: Profile) -> Profile:
    """The profile with the paper's reading of the survival stage; region vectors are made before it."""
    for section in ("fidelity", "survival"):
        ours = {name.split(".")[1]: value for name, value in PAPER_STAGE.items() if name.startswith(section + ".")}
        profile = profile.model_copy(update={section: getattr(profile, section).model_copy(update=ours)})
    return profile


def _register_paper_reading() -> Method:
    network = replace(METHODS["hcmae"], name="hcmae_paper", label="HC-MAE, paper's reading", paper=None)

    def run(inputs: FoldInputs) -> FoldOutput:
        return fit_network(network, replace(inputs, profile=paper_stage(inputs.profile)))

    return register(
        replace(
            network,
            build=None,
            fit=run,
            note="the survival stage as the paper describes it, on this run's region vectors",
            settings=network.reads,
            adapt=paper_stage,
            network=network,
        )
    )


_register_paper_reading()
register(
    Method(
        "hcmae_regions",
        "HC-MAE without thumbnails",
        "multimodal",
        {"regions": "region", "omics": "omics"},
        integration_network,
        note="the network of HIPT (Integration) on MAE-PatReg's vectors: keys and values are the region vectors",
        settings=INTEGRATION,
    )
)
register(
    Method(
        "mae_pat", "MAE-Pat", "image", {"vectors": "patch"}, _configured("mae_pat"), paper="MAE-Pat", settings=_POOLED
    )
)
register(
    Method(
        "mae_reg",
        "MAE-Reg",
        "image",
        {"vectors": "region_reg"},
        _configured("mae_reg"),
        paper="MAE-Reg",
        settings=_POOLED,
    )
)
register(
    Method(
        "mae_patreg",
        "MAE-PatReg",
        "image",
        {"vectors": "region"},
        _configured("mae_patreg"),
        paper="MAE-PatReg",
        settings=_POOLED,
    )
)
register(
    Method(
        "hc_regsli",
        "HC-RegSli",
        "image",
        {**_SLIDE, "region_vectors": "region_reg"},
        _configured("hc_regsli"),
        paper="HC-RegSli",
        settings=_HIERARCHICAL,
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
        settings=_HIERARCHICAL,
    )
)
register(
    Method(
        "trans_mo", "Trans-MO", "omics", {"omics": "omics"}, _configured("trans_mo"), paper="Trans-MO", settings=_OMICS
    )
)
register(
    Method(
        "hcmae_image",
        "HC-MAE, images only",
        "image",
        {**_SLIDE, "region_vectors": "region"},
        _configured("hc_patregsli"),
        note="the same network as HC-PatRegSli",
        settings=_HIERARCHICAL,
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
        settings=("survival.network.dim", *_POOLED),
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
        settings=("fidelity.risk_head",),
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
        settings=("fidelity.risk_head",),
    )
)
