"""What the benchmark of an update prints: Markdown."""

from collections.abc import Mapping, Sequence

from opd_compare import Row
from opd_profile import Profile

MIB = 2**20


def cosine_line(cosines: Mapping[str, float], first: str) -> str:
    listed = ", ".join(f"({name}) {value:.7f}" for name, value in cosines.items() if name != first)
    return f"The same gradient, as cosines to that of ({first}): {listed}"


def table(rows: Sequence[Row]) -> str:
    first = rows[0]
    lines = [
        f"| variant | times as fast as ({first.name}) | of its pairs | images/s | forwards/image "
        f"| held, MiB | peak, MiB | peak, of ({first.name})'s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        pairs = f"{min(row.ratios):.2f} to {max(row.ratios):.2f}" if row.ratios else ""
        peak = "not seen" if row.peak is None else f"{row.peak / MIB:.0f}"
        part = "" if row.peak is None or not first.peak else f"{row.peak / first.peak:.2f}"
        lines.append(
            f"| ({row.name}) {row.label} | {row.ratio:.2f} | {pairs} | "
            f"{row.images_per_second:.3g} | {row.forwards_per_image:.1f} | {row.held / MIB:.0f} | "
            f"{peak} | {part} |"
        )
    return "\n".join(lines)


def profile_text(name: str, found: Profile) -> str:
    """Shares of the update, what an adapter costs, and the bound."""
    whole = sum(found.parts.values())
    one = found.forward
    back = one.adapted_and_back / one.base_and_back
    lines = [
        f"Where the time of ({name}) goes:",
        "",
        "| part | share |",
        "|---|---:|",
        *(f"| {part} | {100 * spent / whole:.1f}% |" for part, spent in found.parts.items()),
        "",
        f"The student's adapter makes a forward {one.adapted / one.base:.2f} times as long, and a "
        f"forward with its backward {back:.2f} times. The {found.forwards} forwards and "
        f"{found.backwards} backwards alone, of the network without adapters, would take "
        f"{100 * found.reached:.0f}% of the time: that is the bound.",
    ]
    return "\n".join(lines)
