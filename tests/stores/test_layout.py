import pytest

from stores.layout import CHUNK_BYTES, PART_BYTES, Layout, PartRange, default_part_rows


@pytest.mark.parametrize(
    ("rows", "parts"), [(0, 0), (1, 1), (63, 1), (64, 1), (65, 2), (128, 2), (129, 3)]
)
def test_parts_cover_the_rows(rows: int, parts: int) -> None:
    layout = Layout(64)
    ranges = layout.parts(rows)
    assert len(ranges) == parts
    starts = [0, *(part.stop for part in ranges)]
    assert starts == list(range(0, parts * 64 + 1, 64))
    assert [part.start for part in ranges] == starts[:-1]
    assert layout.next_boundary(rows) == parts * 64


def test_a_part_is_named_by_its_number() -> None:
    assert Layout(8).part(3) == PartRange(3, 24, 32)


@pytest.mark.parametrize("part_rows", [0, -4, 3, 100])
def test_part_rows_must_be_a_power_of_two(part_rows: int) -> None:
    with pytest.raises(ValueError, match=f"power of two. Got {part_rows}"):
        Layout(part_rows)


@pytest.mark.parametrize("row_bytes", [0, 1, 3072, 8192, 200_704, 2_102_784, 10**9])
@pytest.mark.parametrize("part_rows", [1, 64, 1024])
def test_chunks_divide_the_part_and_stay_small(row_bytes: int, part_rows: int) -> None:
    rows = Layout(part_rows).chunk_rows(row_bytes)
    assert part_rows % rows == 0
    assert rows == 1 or rows * row_bytes <= CHUNK_BYTES


@pytest.mark.parametrize("row_bytes", [0, 3840, 10_000_000, 10**10])
def test_a_part_fits_in_memory(row_bytes: int) -> None:
    rows = default_part_rows(row_bytes)
    assert Layout(rows).part_rows == rows
    assert rows == 1 or rows * row_bytes <= PART_BYTES
