"""HC-MAE and the configurations of Table III in the registry."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from hcmae.config import Fidelity, Profile
from hcmae.survival.methods import Method, Sizes, register
from hcmae_core.ablations import CONFIGURATIONS, ReleaseRegionSlide, build, release_hierarchical
from hcmae_core.baselines.abmil import GatedAttentionMIL
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


_NETWORK = ("survival.network", "survival.dropout", "fidelity.risk_head")
_POOLED = _NETWORK[1:]
_HIERARCHICAL = (*_NETWORK, "fidelity.slide_positions")
_OMICS = (*_NETWORK, "survival.omics_dropout", "fidelity.omics_projection")
_SLIDE = {"thumbnails": "thumbnail", "positions": "positions"}

register(
    Method(
        "hcmae",
        "HC-MAE",
        "multimodal",
        {**_SLIDE, "region_vectors": "region", "omics": "omics"},
        _configured("hcmae"),
        paper="HC-MAE",
        settings=(*_HIERARCHICAL, *_OMICS, "fidelity.pooler"),
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
