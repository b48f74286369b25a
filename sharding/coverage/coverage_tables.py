"""Print what synthetic volumes cover of scans, in tables that fit the terminal, or 100 columns without one."""

import sys
from collections.abc import Sequence

from upfield.common.tables import PLAIN_WIDTH, terminal_width, text_table
from upfield.sharding.coverage.comparison import LEAST_VOLUMES, Distribution, MeasureCoverage, ScanCoverage
from upfield.sharding.coverage.picture import AuditedScan

HEADER = ("measure", "scan", "synthetic 5..95%", "percentile", "")


def print_coverage(audited: Sequence[AuditedScan], distributions: Sequence[Distribution], *, is_limited: bool) -> None:
    """Print a table for each scan and recipe, and then a summary.

    Args:
        audited: the scans.
        distributions: the synthetic volumes.
        is_limited: whether `volumes` of the configuration left out synthetic volumes that the split may have.
    """
    width = terminal_width(sys.stdout) or PLAIN_WIDTH
    for each in distributions:
        if len(each.volumes) < LEAST_VOLUMES:
            remedy = "Raise --volumes" if is_limited else "Build a set with more of them"
            print(f"warning: too few volumes of {each.title}: {len(each.volumes)}. {remedy}.\n")
    for item in audited:
        for coverage in item.coverages:
            print(f"{title_of(item, coverage)}\n")
            print(
                text_table(HEADER, list(map(_row, coverage.measures)), wrapped=("", "measure"), width=width), end="\n\n"
            )
        if item.scan.doubt:
            print(f"warning: {item.scan.name}: {item.scan.doubt}.\n")
    rows = [
        [item.scan.name, coverage.distribution.title, *(str(coverage.count(each)) for each in (True, False, None))]
        for item in audited
        for coverage in item.coverages
    ]
    header = ("scan", "synthetic", "inside", "outside", "not measured")
    print(text_table(header, rows, wrapped=("scan", "synthetic"), width=width))


def title_of(item: AuditedScan, coverage: ScanCoverage) -> str:
    """Return a line that names a scan and the synthetic volumes that it is compared with."""
    contrast = item.scan.contrast
    shown = f"{item.scan.name} ({contrast})" if contrast else item.scan.name
    found = coverage.distribution
    other = ""
    if contrast is not None and found.contrast != contrast:
        other = f", not {contrast}" if found.contrast else ", contrast not known"
    return f"{shown} among {len(found.volumes)} synthetic volumes ({found.title}{other})"


def _row(coverage: MeasureCoverage) -> list[str]:
    value = "-" if coverage.value is None else f"{coverage.value:.3g}"
    limits = "-" if coverage.limits is None else f"{coverage.limits[0]:.3g} .. {coverage.limits[1]:.3g}"
    percentile = "-" if coverage.percentile is None else f"{coverage.percentile:.0f}"
    if coverage.is_inside is None:
        verdict = "not measured"
    elif coverage.is_inside:
        verdict = "inside"
    else:
        verdict = "outside" + (f": {coverage.advice.change}" if coverage.advice else "")
    return [coverage.measure.title, value, limits, percentile, verdict]
