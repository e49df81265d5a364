//! `.hgrm`: the percentile text that HdrHistogram's tools write and plot.
//!
//! The layout is that of the Java library's `outputPercentileDistribution`
//! with five ticks for each halving, which is what the plotter on
//! hdrhistogram.org reads. Values are in milliseconds, its default unit.

use std::fmt::Write;

use hdrhistogram::Histogram;

/// Lines for each halving of the distance to 100 %.
const TICKS: u32 = 5;
/// Nanoseconds in a unit of the text. Six digits after the point keep each of
/// them: the early stages take a few microseconds.
const UNIT_NS: f64 = 1_000_000.0;

/// The distribution of a histogram of nanoseconds.
pub(super) fn hgrm(histogram: &Histogram<u64>) -> String {
    let mut text = String::new();
    let heads = ("Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    line(
        &mut text,
        format_args!("{:>12} {:>14} {:>10} {:>14}\n", heads.0, heads.1, heads.2, heads.3),
    );
    let mut total = 0;
    for step in histogram.iter_quantiles(TICKS) {
        total += step.count_since_last_iteration();
        let value = step.value_iterated_to() as f64 / UNIT_NS;
        let quantile = step.quantile_iterated_to();
        if quantile < 1.0 {
            let inverse = 1.0 / (1.0 - quantile);
            line(
                &mut text,
                format_args!("{value:12.6} {quantile:14.12} {total:10} {inverse:14.2}"),
            );
        } else {
            line(&mut text, format_args!("{value:12.6} {quantile:14.12} {total:10}"));
        }
    }
    let (mean, deviation) = (histogram.mean() / UNIT_NS, histogram.stdev() / UNIT_NS);
    let (max, count) = (histogram.max() as f64 / UNIT_NS, histogram.len());
    let (buckets, sub_buckets) = (histogram.buckets(), sub_buckets(histogram));
    line(&mut text, format_args!("#[Mean    = {mean:12.6}, StdDeviation   = {deviation:12.6}]"));
    line(&mut text, format_args!("#[Max     = {max:12.6}, Total count    = {count:12}]"));
    line(&mut text, format_args!("#[Buckets = {buckets:12}, SubBuckets     = {sub_buckets:12}]"));
    text
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a string takes everything");
}

/// The library keeps it to itself: every bucket but the first uses the upper
/// half of its places.
fn sub_buckets(histogram: &Histogram<u64>) -> usize {
    2 * histogram.distinct_values() / (usize::from(histogram.buckets()) + 1)
}

#[cfg(test)]
mod tests {
    use super::super::published::histogram;
    use super::*;

    const GOLDEN: &str = "       \
       Value     Percentile TotalCount 1/(1-Percentile)

    0.100351 0.000000000000          5           1.00
    0.100351 0.100000000000          5           1.11
    0.100351 0.200000000000          5           1.25
    0.100351 0.300000000000          5           1.43
    0.100351 0.400000000000          5           1.67
    0.100351 0.500000000000          5           2.00
    0.200191 0.550000000000          8           2.22
    0.200191 0.600000000000          8           2.50
    0.200191 0.650000000000          8           2.86
    0.200191 0.700000000000          8           3.33
    0.200191 0.750000000000          8           4.00
    0.200191 0.775000000000          8           4.44
    1.000447 0.800000000000          9           5.00
    1.000447 0.825000000000          9           5.71
    1.000447 0.850000000000          9           6.67
    1.000447 0.875000000000          9           8.00
    1.000447 0.887500000000          9           8.89
   20.004863 0.900000000000         10          10.00
   20.004863 1.000000000000         10
#[Mean    =     2.209715, StdDeviation   =     5.934719]
#[Max     =    20.004863, Total count    =           10]
#[Buckets =           17, SubBuckets     =         2048]
";

    #[test]
    fn golden() {
        let mut few = histogram();
        for (micros, count) in [(100, 5), (200, 3), (1_000, 1), (20_000, 1)] {
            few.record_n(micros * 1_000, count).unwrap();
        }
        assert_eq!(hgrm(&few), GOLDEN);
    }

    #[test]
    fn nothing_is_still_a_file() {
        let text = hgrm(&histogram());
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.contains("Total count    =            0]"));
    }
}
