"""The probe finds a site that is there and none that is not."""

from __future__ import annotations

import numpy as np
import pytest

from hcmae.interpretation.sites import site_probe


@pytest.mark.slow
def test_a_site_that_stains_otherwise_is_found_and_a_name_alone_is_not() -> None:
    rng = np.random.default_rng(0)
    site = np.repeat(["A", "B", "C", "D"], [14, 12, 10, 2])
    shift = 3.0 * (site[:, None] == np.array(["A", "B", "C"]))
    noise = rng.normal(size=(len(site), 6))
    stained = noise + np.hstack([shift, np.zeros((len(site), 3))])
    found = site_probe(stained, site, permutations=19)
    assert found.accuracy > 0.8
    assert found.p == pytest.approx(1 / 20)
    assert (found.sites, found.patients) == (3, 36)
    assert found.chance == pytest.approx(1 / 3, abs=0.15)
    null = site_probe(noise, site, permutations=19)
    assert null.p > 0.05
    with pytest.raises(ValueError, match="nothing to tell apart"):
        site_probe(noise, np.arange(len(site)).astype(str))
