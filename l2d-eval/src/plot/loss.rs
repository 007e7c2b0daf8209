//! Loss against training steps.

use plotters::prelude::*;

use super::Chart;
use super::canvas::{Area, Axis, AxisText, FINE, LegendEntry, SAMPLE, axes, colour, draw, heading, plot_error, stroke};
use crate::error::{Error, Result};

/// Points a curve may have before it is drawn faint, with its running mean in full colour over it.
const NOISY: usize = 150;

/// The vertical axis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LossScale {
    /// Equal distances for equal differences.
    #[default]
    Linear,
    /// Equal distances for equal ratios; every loss must be above 0.
    Log,
}

/// One curve.
#[derive(Debug, Clone, PartialEq)]
pub struct LossSeries {
    /// Its name in the legend.
    pub label: String,
    /// Training step and loss, in order of the steps.
    pub points: Vec<(usize, f64)>,
}

/// The chart's content.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LossPlot {
    /// The title; may be empty.
    pub title: String,
    /// The curves. One with more than 150 points is drawn faint with its centred running mean (over a fortieth of its
    /// points) in full colour, and its label says so.
    pub series: Vec<LossSeries>,
    /// The vertical axis.
    pub scale: LossScale,
}

impl LossPlot {
    /// Draws the chart.
    ///
    /// # Errors
    /// [`Error::Plot`] where there is no point, or a loss is not finite, or not above 0 on a logarithmic axis.
    pub fn draw(&self) -> Result<Chart> {
        for series in &self.series {
            for (step, loss) in &series.points {
                if !loss.is_finite() || (self.scale == LossScale::Log && *loss <= 0.0) {
                    return Err(Error::Plot(format!("`{}` has loss {loss} at step {step}", series.label)));
                }
            }
        }
        if self.series.iter().all(|series| series.points.is_empty()) {
            return Err(Error::Plot("there is no point to draw".to_owned()));
        }
        let svg = draw(|area| self.paint(area))?;
        Ok(Chart { svg })
    }

    fn paint(&self, area: &Area<'_>) -> Result<()> {
        let top = heading(area, &self.title, &self.legend())?;
        let steps = || self.series.iter().flat_map(|series| &series.points).map(|point| point.0);
        let (first, last) = (steps().min().unwrap_or(0), steps().max().unwrap_or(0));
        let mut x = Axis::round(first as f64, last as f64, 7);
        // Curves should fill the width; the last tick may stand left of the end.
        x.low = if first as f64 <= 0.05 * last as f64 { 0.0 } else { x.low };
        x.high = (last as f64).max(x.low + 1.0);
        let (low, high) = (x.low, x.high);
        x.ticks.retain(|tick| (low..=high).contains(tick) && tick.fract() == 0.0);

        let losses = self.series.iter().flat_map(|series| &series.points).map(|point| point.1);
        let (low, high) = losses.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), loss| (a.min(loss), b.max(loss)));
        let y = match self.scale {
            LossScale::Linear => Axis::round(low, high, 6),
            LossScale::Log => log_axis(low, high),
        };
        let decimals = (-y.tick_spacing().log10() - 1e-9).ceil().clamp(0.0, 6.0) as usize;
        let name = match self.scale {
            LossScale::Linear => "loss (nats per token)",
            LossScale::Log => "loss (nats per token, log scale)",
        };
        let written = |value: &f64| match self.scale {
            LossScale::Linear => format!("{value:.decimals$}"),
            LossScale::Log => plain(10_f64.powf(*value)),
        };
        let x_text = AxisText { name: "training step", format: &|step| grouped(*step as u64) };
        let chart = axes(area, top, 30 * FINE, (x, x_text), (y, AxisText { name, format: &written }))?;
        let plane = chart.plotting_area();
        let at = |(step, loss): (f64, f64)| {
            let height = if self.scale == LossScale::Log { loss.log10() } else { loss };
            plane.map_coordinate(&(step, height))
        };

        let curve = |points: &[(f64, f64)]| points.iter().map(|point| at(*point)).collect::<Vec<_>>();
        for (index, series) in self.series.iter().enumerate() {
            let points: Vec<(f64, f64)> = series.points.iter().map(|(step, loss)| (*step as f64, *loss)).collect();
            let drawn = match window(points.len()) {
                Some(window) => {
                    let faint = stroke(colour(index).mix(0.28), 10);
                    area.draw(&PathElement::new(curve(&points), faint)).map_err(plot_error)?;
                    running_mean(&points, window)
                }
                None => points,
            };
            if let [only] = drawn.as_slice() {
                area.draw(&Circle::new(at(*only), 4 * FINE, colour(index).filled())).map_err(plot_error)?;
            } else {
                area.draw(&PathElement::new(curve(&drawn), stroke(colour(index), 24))).map_err(plot_error)?;
            }
        }
        Ok(())
    }

    fn legend(&self) -> Vec<LegendEntry<'_>> {
        let entry = |(index, series): (usize, &LossSeries)| LegendEntry {
            label: match window(series.points.len()) {
                Some(window) => format!("{} (mean of {window})", series.label),
                None => series.label.clone(),
            },
            sample: Box::new(move |area: &Area<'_>, (x, y)| {
                let line = PathElement::new([(x - SAMPLE, y), (x + SAMPLE, y)], stroke(colour(index), 24));
                area.draw(&line).map_err(plot_error)
            }),
        };
        self.series.iter().enumerate().map(entry).collect()
    }
}

/// How many points the running mean takes in, where there are enough to need one. Odd, so that it has a centre.
fn window(points: usize) -> Option<usize> {
    (points > NOISY).then_some((points / 40) | 1)
}

/// The centred mean over `window` points, where there are as many: shorter means at the ends would be noise that looks
/// like a trend.
fn running_mean(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    points
        .windows(window)
        .map(|part| (part[window / 2].0, part.iter().map(|point| point.1).sum::<f64>() / window as f64))
        .collect()
}

/// Ticks at 1, 2 and 5 times powers of ten; only powers where there are many. In log10.
fn log_axis(low: f64, high: f64) -> Axis {
    let (low, high) = (low.log10(), high.log10());
    let pad = (0.04 * (high - low)).max(0.02);
    let (low, high) = (low - pad, high + pad);
    let digits: &[f64] = if high - low > 3.0 {
        &[1.0]
    } else if high - low > 0.7 {
        &[1.0, 2.0, 5.0]
    } else {
        &[1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0]
    };
    let mut ticks = Vec::new();
    for power in low.floor() as i32..=high.ceil() as i32 {
        ticks.extend(digits.iter().map(|digit| f64::from(power) + digit.log10()));
    }
    ticks.retain(|tick| (low..=high).contains(tick));
    Axis { low, high, ticks }
}

/// Two significant digits without an exponent.
fn plain(value: f64) -> String {
    let decimals = (1.0 - value.log10().floor()).clamp(0.0, 12.0) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Thousands set apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(count: usize) -> LossSeries {
        LossSeries { label: "t > 0.9".to_owned(), points: (0..count).map(|i| (i, 3.0 / (1.0 + i as f64))).collect() }
    }

    #[test]
    fn a_long_curve_says_that_it_is_smoothed() {
        let svg = |count| {
            let plot = LossPlot { series: vec![series(count)], ..LossPlot::default() };
            plot.draw().unwrap().svg().to_owned()
        };
        assert!(svg(2000).contains("t &gt; 0.9 (mean of 51)"));
        assert!(!svg(100).contains("mean of"));
    }

    #[test]
    fn the_running_mean_keeps_straight_lines() {
        let line: Vec<(f64, f64)> = (0..50).map(|i| (f64::from(i), 2.0 * f64::from(i) + 1.0)).collect();
        let means = running_mean(&line, 11);
        assert_eq!(means.len(), 40);
        for ((step, mean), (x, value)) in means.iter().zip(&line[5..]) {
            assert_eq!(step, x);
            assert!((mean - value).abs() < 1e-9);
        }
    }

    #[test]
    fn losses_that_cannot_be_drawn_are_named() {
        let mut nan = series(5);
        nan.points[3].1 = f64::NAN;
        let error = LossPlot { series: vec![nan], ..LossPlot::default() }.draw().unwrap_err().to_string();
        assert_eq!(error, "plot: `t > 0.9` has loss NaN at step 3");
        let mut zero = series(5);
        zero.points[4].1 = 0.0;
        let plot = |scale| LossPlot { series: vec![zero.clone()], scale, ..LossPlot::default() };
        assert!(plot(LossScale::Log).draw().is_err());
        assert!(plot(LossScale::Linear).draw().is_ok());
        assert!(LossPlot::default().draw().is_err());
    }

    #[test]
    fn one_point_is_drawn() {
        for scale in [LossScale::Linear, LossScale::Log] {
            LossPlot { series: vec![series(1)], scale, ..LossPlot::default() }.draw().unwrap().png(1.0).unwrap();
        }
    }

    #[test]
    fn numbers_are_written_plainly() {
        assert_eq!([0.001, 0.25, 1.0, 20.0, 500.0].map(plain), ["0.001", "0.25", "1", "20", "500"]);
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
