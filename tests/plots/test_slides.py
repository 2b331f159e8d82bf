"""Figures of slides: each shows the pictures, squares and numbers it was given."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from hcmae import plots


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def shown(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for ax in figure.axes for image in ax.images]


def titles(figure: Figure) -> list[str]:
    return [ax.get_title() for ax in figure.axes if ax.get_title()]


@pytest.fixture(autouse=True)
def plain_style() -> Iterator[None]:
    """Matplotlib's own settings, whatever a test before has switched on."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        yield


def test_nuclei_are_outlined_where_they_lie() -> None:
    labels = np.zeros((2, 20, 20), int)
    labels[0, 2:6, 3:9], labels[0, 6:10, 3:9] = 1, 2  # two that touch keep a line each
    figure = plots.plot_nuclei(np.stack([picture(20, 20), picture(20, 20, 1)]), labels)
    assert titles(figure) == ["2 nuclei", "0 nuclei"]
    first, second = figure.axes[2].lines
    assert (min(first.get_xdata()), max(first.get_xdata())) == (2.5, 8.5)
    assert (min(first.get_ydata()), max(first.get_ydata())) == (1.5, 5.5)
    assert min(second.get_ydata()) == 5.5
    assert not figure.axes[0].lines
    assert not figure.axes[3].lines
    with pytest.raises(ValueError, match="do not fit"):
        plots.plot_nuclei(np.zeros((2, 20, 20, 3), np.uint8), labels[:1])


def test_pyramid_has_a_panel_per_level() -> None:
    levels = [picture(64, 64), picture(16, 16), picture(4, 4)]
    figure = plots.plot_pyramid(levels, [1, 4, 16.0005], title="one square")
    assert titles(figure) == ["1 : 1, 64 px", "1 : 4, 16 px", "1 : 16, 4 px"]
    for given, found in zip(levels, shown(figure), strict=True):
        np.testing.assert_array_equal(found, given)
    assert figure.get_suptitle() == "one square"
    with pytest.raises(ValueError):
        plots.plot_pyramid(levels, [1, 4])


def test_large_pictures_are_averaged_and_small_ones_keep_their_pixels() -> None:
    figure = plots.plot_pyramid([picture(512, 512), picture(32, 32)], [1, 16])
    assert [ax.images[0].get_interpolation() for ax in figure.axes] == ["antialiased", "nearest"]


def test_tissue_frames_the_kept_squares_where_they_lie() -> None:
    overview, mask = picture(30, 40), np.zeros((15, 20), bool)
    mask[5:, 10:] = True
    corners = np.array([[0, 0], [200, 0], [200, 100]])
    kept = np.array([False, False, True])
    figure = plots.plot_tissue(overview, mask, corners, kept, side=100, scale=0.1)
    assert titles(figure) == ["slide", "tissue", "1 of 3 squares"]
    _, tissue, grid = figure.axes
    shade = np.asarray(tissue.images[1].get_array())
    np.testing.assert_array_equal(shade[..., 3] > 0, ~mask)
    # The mask is coarser than the overview and covers the same area.
    assert tissue.images[1].get_extent() == tissue.images[0].get_extent()
    assert [(*square.get_xy(), square.get_width(), square.get_height()) for square in grid.patches] == [
        (0, 0, 10, 10),
        (20, 0, 10, 10),
        (20, 10, 10, 10),
    ]
    colours = [to_hex(square.get_edgecolor()) for square in grid.patches]
    assert colours[0] == colours[1] != colours[2]
    assert grid.patches[2].get_zorder() > grid.patches[0].get_zorder()


def test_kept_and_rejected_stand_side_by_side() -> None:
    kept, rejected = [picture(8, 8, i) for i in range(3)], [picture(8, 8, 9)]
    figure = plots.plot_kept_and_rejected(
        {"kept": kept, "rejected": rejected}, {"kept": [0.5, 0.75, 1.0], "rejected": [0.25]}
    )
    axes = np.array(figure.axes).reshape(2, 4)
    assert [[ax.get_title() for ax in row] for row in axes] == [
        ["kept: 50%", "kept: 75%", "rejected: 25%", ""],
        ["kept: 100%", "", "", ""],
    ]
    np.testing.assert_array_equal(axes[1, 0].images[0].get_array(), kept[2])
    np.testing.assert_array_equal(axes[0, 2].images[0].get_array(), rejected[0])
    assert axes[0, 0].title.get_color() != axes[0, 2].title.get_color()


def test_a_group_may_be_empty_but_not_unknown() -> None:
    figure = plots.plot_kept_and_rejected({"kept": [picture(8, 8)], "rejected": []}, {"kept": [0.9], "rejected": []})
    assert titles(figure) == ["kept: 90%"]
    with pytest.raises(ValueError, match="unknown group 'lost'"):
        plots.plot_kept_and_rejected({"lost": []}, {"lost": []})
    with pytest.raises(ValueError):
        plots.plot_kept_and_rejected({"kept": [picture(8, 8)]}, {"kept": []})


def test_nested_squares_are_cut_at_pixel_borders() -> None:
    figure = plots.plot_nested_squares({"region": (picture(64, 64), 16), "thumbnail": (picture(4, 4), None)})
    region, thumbnail = figure.axes
    across = sorted(line.get_ydata()[0] for line in region.lines if line.get_ydata()[0] == line.get_ydata()[1])
    down = sorted(line.get_xdata()[0] for line in region.lines if line.get_xdata()[0] == line.get_xdata()[1])
    assert across == down == [-0.5, 15.5, 31.5, 47.5, 63.5]
    assert not thumbnail.lines
    assert titles(figure) == ["region", "thumbnail"]


def test_contact_sheet_keeps_the_order_and_the_limit() -> None:
    thumbnails = np.stack([picture(4, 4, i) for i in range(7)])
    figure = plots.plot_contact_sheet(thumbnails, columns=3, limit=5)
    assert titles(figure) == ["0", "1", "2", "3", "4"]
    assert len(figure.axes) == 6
    for given, found in zip(thumbnails[:5], shown(figure), strict=True):
        np.testing.assert_array_equal(found, given)
    labelled = plots.plot_contact_sheet(thumbnails[:2], ["90%", "40%"], columns=2)
    assert titles(labelled) == ["90%", "40%"]
    assert shown(plots.plot_contact_sheet(thumbnails[:0], columns=2)) == []
