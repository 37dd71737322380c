"""Tiles and blocks against the plain statement: for each row, who owns it."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex.kernels.bucket import Bucket
from loraplex.kernels.host_tables import HostTables
from loraplex.kernels.segments import NO_ADAPTER, Blocks, Segment, Tiles
from loraplex.kernels.upload import to_device

HEIGHTS = (1, 16, 32, 64, 128, 256)
NUM_ADAPTERS = 4


@st.composite
def routed(draw: st.DrawFn) -> tuple[int, tuple[Segment, ...]]:
    """(rows, segments): gaps or none between them, borders at blocks or anywhere, an adapter in several or in none."""
    row, segments = 0, []
    for gap, num_rows, adapter in draw(
        st.lists(
            st.tuples(
                st.sampled_from([0, 0, 1, 63, 64, 130]),
                st.sampled_from([1, 16, 63, 64, 65, 128, 200, 256]) | st.integers(1, 300),
                st.integers(0, NUM_ADAPTERS - 1),
            ),
            max_size=6,
        )
    ):
        segments.append(Segment(first_row=row + gap, num_rows=num_rows, adapter=adapter))
        row = segments[-1].end_row
    return row + draw(st.sampled_from([0, 0, 1, 64, 100])), tuple(segments)


def owners_of(num_rows: int, segments: Sequence[Segment]) -> list[int]:
    """Of each row."""
    owners = [NO_ADAPTER] * num_rows
    for segment in segments:
        for row in range(segment.first_row, segment.end_row):
            owners[row] = segment.adapter
    return owners


def runs(rows: Sequence[int], owners: Sequence[int], segments: Sequence[Segment], cuts: int) -> list[list[int]]:
    """[first row, end row, owner] of neighbours in `rows` with one owner, parted at borders and multiples of `cuts`."""
    borders = {border for segment in segments for border in (segment.first_row, segment.end_row)}
    found: list[list[int]] = []
    for row in rows:
        if found and found[-1][1] == row and row not in borders and row % cuts:
            found[-1][1] += 1
        else:
            found.append([row, row + 1, owners[row]])
    return found


def check_tiles(tiles: Tiles, wanted: list[list[int]], height: int) -> None:
    """They are these runs, cut from their first rows on, adapter by adapter and none's last."""
    wanted.sort(key=lambda run: (run[2] % (NUM_ADAPTERS + 1), run[0]))
    table = [
        [row, min(row + height, end), owner, 0] for first, end, owner in wanted for row in range(first, end, height)
    ]
    assert tiles.height == height
    assert tiles.table.tolist() == table
    places = {a: [i for i, row in enumerate(table) if row[2] == a] for a in range(NUM_ADAPTERS)}
    with_tiles = [[a, own[0], own[-1] + 1, 0] for a, own in places.items() if own]
    assert tiles.ranges.tolist() == with_tiles + [[a, 0, 0, 0] for a, own in places.items() if not own]
    assert tiles.num_owners == len(with_tiles)
    assert tiles.most_tiles == max(len(own) for own in places.values())
    assert tiles.num_owned == sum(len(own) for own in places.values())


def check_blocks(blocks: Blocks, num_rows: int, segments: Sequence[Segment], height: int) -> None:
    """A block is whole where one segment covers it; all other rows of adapters are borders."""
    owners, whole, beside = owners_of(num_rows, segments), [], []
    for first in range(0, num_rows, height):
        rows = range(first, min(first + height, num_rows))
        covering = [s.adapter for s in segments if s.first_row <= rows[0] and rows[-1] < s.end_row]
        whole += covering or [NO_ADAPTER]
        beside += [] if covering else [row for row in rows if owners[row] != NO_ADAPTER]
    assert blocks.height == height
    assert blocks.owners.tolist() == whole
    assert blocks.num_border_rows == len(beside)
    check_tiles(blocks.borders, runs(beside, owners, segments, height), 64)


@settings(max_examples=150, deadline=None)
@given(routed(), st.sets(st.sampled_from(HEIGHTS)), st.sets(st.sampled_from(HEIGHTS)))
def test_tables_say_of_every_row_who_owns_it(
    case: tuple[int, tuple[Segment, ...]], tile_heights: set[int], block_heights: set[int]
) -> None:
    num_rows, segments = case
    on_host = HostTables.of(
        segments, num_rows=num_rows, num_adapters=NUM_ADAPTERS, tile_heights=tile_heights, block_heights=block_heights
    )
    tiles, blocks = on_host.on_device(to_device(on_host.arrays(), "cpu"))
    assert (set(tiles), set(blocks)) == (tile_heights, block_heights)
    for height in tile_heights:
        wanted = runs(range(num_rows), owners_of(num_rows, segments), segments, num_rows + 1)
        check_tiles(tiles[height], wanted, height)
    for height in block_heights:
        check_blocks(blocks[height], num_rows, segments, height)


@st.composite
def bucketed(draw: st.DrawFn) -> tuple[Bucket, tuple[Segment, ...]]:
    """A bucket, and segments without gaps that fit it."""
    row, segments = 0, []
    sizes = draw(st.lists(st.sampled_from([1, 16, 63, 64, 65, 128]) | st.integers(1, 200), min_size=1, max_size=5))
    for num_rows in sizes:
        segments.append(Segment(first_row=row, num_rows=num_rows, adapter=draw(st.integers(0, NUM_ADAPTERS - 1))))
        row = segments[-1].end_row
    step = draw(st.sampled_from([1, 64, 128]))
    most = len(segments) + draw(st.integers(0, 3))
    return Bucket(num_rows=-(-row // step) * step, most_padding=step - 1, most_segments=most), tuple(segments)


@settings(max_examples=150, deadline=None)
@given(bucketed(), st.sampled_from(HEIGHTS))
def test_in_a_bucket_only_what_tables_say_differs(case: tuple[Bucket, tuple[Segment, ...]], height: int) -> None:
    bucket, segments = case
    made = [
        HostTables.of(
            segments, num_rows=bucket.num_rows, num_adapters=NUM_ADAPTERS, tile_heights=[height], bucket=filled
        )
        for filled in (None, bucket)
    ]
    (tight,), (filled,) = (tables.on_device(to_device(tables.arrays(), "cpu"))[0].values() for tables in made)
    # What the host reads is the bucket's, whatever the segments.
    owned, padded = bucket.num_owned(height), bucket.num_padded(height)
    assert filled.table.shape == (owned + padded, 4)
    assert (filled.num_owned, filled.num_owners) == (owned, NUM_ADAPTERS)
    assert filled.most_tiles == -(-bucket.num_rows // height)
    # The same tiles, each kind followed by empty ones.
    table = tight.table.tolist()
    own, none = table[: tight.num_owned], table[tight.num_owned :]
    empty, empty_of_none = [[0, 0, 0, 0]], [[0, 0, NO_ADAPTER, 0]]
    assert filled.table.tolist() == (own + empty * (owned - len(own)) + none + empty_of_none * (padded - len(none)))
    assert filled.ranges.tolist() == tight.ranges.tolist()


@pytest.mark.parametrize(
    "segments",
    [
        [(0, 40, 0), (40, 10, 1), (50, 10, 0)],
        [(0, 40, 0), (41, 23, 1)],
        [(1, 63, 0)],
        [(0, 31, 0)],
        [],
    ],
    ids=["too many", "a gap", "not from row 0", "too much padding", "none"],
)
def test_segments_that_do_not_fit_a_bucket(segments: list[tuple[int, int, int]]) -> None:
    bucket = Bucket(num_rows=64, most_padding=32, most_segments=2)
    with pytest.raises(ValueError, match="of 64 do not fit"):
        bucket.check(64, [Segment(first_row=row, num_rows=count, adapter=a) for row, count, a in segments])
