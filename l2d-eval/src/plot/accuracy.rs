//! Accuracy against evaluations a token: the method's scaling curve.

use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::Chart;
use super::canvas::{
    Area, Axis, AxisText, FINE, LegendEntry, MUTED, SAMPLE, TEXT_SIZE, anchored, axes, colour, draw, heading,
    plot_error, stroke,
};
use super::marks::{error_bar, line, marker};
use crate::error::{Error, Result};
use crate::metric::Proportion;
use crate::report::RunReport;

/// One measured point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AccuracyPoint {
    /// Evaluations a token, at least 1.
    pub steps: usize,
    /// Accuracy in [0, 1].
    pub accuracy: f64,
    /// Its standard error, drawn as a bar of one to each side.
    pub standard_error: Option<f64>,
}

/// Points joined by a line.
#[derive(Debug, Clone, PartialEq)]
pub struct AccuracySeries {
    /// Its name in the legend.
    pub label: String,
    /// Its points, in any order.
    pub points: Vec<AccuracyPoint>,
}

/// A horizontal line to compare with, such as the base LM decoded greedily.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferenceLine {
    /// Its name in the legend.
    pub label: String,
    /// Accuracy in [0, 1].
    pub accuracy: f64,
    /// Its standard error, drawn as a band.
    pub standard_error: Option<f64>,
}

/// The chart's content.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AccuracyPlot {
    /// The title; may be empty.
    pub title: String,
    /// The name of the vertical axis, e.g. `GSM8K accuracy, %`.
    pub y_label: String,
    /// The curves.
    pub series: Vec<AccuracySeries>,
    /// The lines to compare with.
    pub references: Vec<ReferenceLine>,
}

impl AccuracyPlot {
    /// The curves of a report's runs, one for each series and strength of guidance in the order they first come in. Of
    /// several seeds the mean is drawn. Runs without samples are left out.
    pub fn from_runs<'a>(
        title: impl Into<String>,
        y_label: impl Into<String>,
        runs: impl IntoIterator<Item = &'a RunReport>,
    ) -> Self {
        let runs: Vec<&RunReport> = runs.into_iter().collect();
        let mut strengths: Vec<String> =
            runs.iter().filter_map(|run| run.label.guidance).map(|w| w.to_string()).collect();
        strengths.dedup();
        let mut series: Vec<AccuracySeries> = Vec::new();
        for (label, steps, values) in by_point(&runs, strengths.len() > 1) {
            let Some((accuracy, standard_error)) = mean_of_runs(&values) else { continue };
            let point = AccuracyPoint { steps, accuracy, standard_error };
            match series.iter_mut().find(|series| series.label == label) {
                Some(series) => series.points.push(point),
                None => series.push(AccuracySeries { label, points: vec![point] }),
            }
        }
        Self { title: title.into(), y_label: y_label.into(), series, references: Vec::new() }
    }

    /// Draws the chart. The horizontal axis is logarithmic in such a way that 1, 3, 7, 15, 31, 63 stand at equal distances.
    ///
    /// # Errors
    /// [`Error::Plot`] where there is no point, or a number is not finite or out of its range.
    pub fn draw(&self) -> Result<Chart> {
        self.check()?;
        let svg = draw(|area| self.paint(area))?;
        Ok(Chart { svg })
    }

    fn check(&self) -> Result<()> {
        let values = self
            .series
            .iter()
            .flat_map(|series| &series.points)
            .map(|point| (point.accuracy, point.standard_error))
            .chain(self.references.iter().map(|line| (line.accuracy, line.standard_error)));
        for (accuracy, error) in values {
            if !(0.0..=1.0).contains(&accuracy) {
                return Err(Error::Plot(format!("accuracy {accuracy} is not in [0, 1]")));
            }
            if error.is_some_and(|error| !(error.is_finite() && error >= 0.0)) {
                return Err(Error::Plot(format!("standard error {error:?} is not a number of 0 or above")));
            }
        }
        let mut points = self.series.iter().flat_map(|series| &series.points).peekable();
        if points.peek().is_none() {
            return Err(Error::Plot("there is no point to draw".to_owned()));
        }
        if points.any(|point| point.steps == 0) {
            return Err(Error::Plot("a point has 0 steps; 1 is the plain LM".to_owned()));
        }
        Ok(())
    }

    fn paint(&self, area: &Area<'_>) -> Result<()> {
        let top = heading(area, &self.title, &self.legend())?;
        let labels = self.reference_labels();
        let right = if labels.is_empty() { 28 } else { 62 } * FINE;
        let x_text = AxisText {
            name: "diffusion steps per token (evaluations, log scale; 1 = plain LM)",
            format: &|place| format!("{:.0}", place.exp2() - 1.0),
        };
        let y = self.y_axis();
        let decimals = usize::from(y.tick_spacing() < 1.0);
        let y_text = AxisText { name: &self.y_label, format: &|percent| format!("{percent:.decimals$}") };
        let chart = axes(area, top, right, (self.x_axis(), x_text), (y, y_text))?;
        let plane = chart.plotting_area();
        let (x_pixels, y_pixels) = plane.get_pixel_range();
        let at = |x: f64, accuracy: f64| plane.map_coordinate(&(x, 100.0 * accuracy));

        for (index, line) in self.references.iter().enumerate() {
            let (_, y) = at(0.0, line.accuracy);
            if let Some(error) = line.standard_error {
                let (_, high) = at(0.0, (line.accuracy + error).min(1.0));
                let (_, low) = at(0.0, (line.accuracy - error).max(0.0));
                let band = MUTED.mix(0.10).filled();
                area.draw(&Rectangle::new([(x_pixels.start, high), (x_pixels.end, low)], band)).map_err(plot_error)?;
            }
            area.draw(&reference_line(index, x_pixels.start, x_pixels.end, y)).map_err(plot_error)?;
        }
        let wanted: Vec<i32> = labels.iter().map(|(accuracy, _)| at(0.0, *accuracy).1).collect();
        for (y, (_, label)) in spread(&wanted, 17 * FINE, y_pixels.end).into_iter().zip(labels) {
            let place = (x_pixels.end + 8 * FINE, y);
            let style = anchored(TEXT_SIZE - 2, &MUTED, HPos::Left, VPos::Center);
            area.draw(&Text::new(label, place, style)).map_err(plot_error)?;
        }

        for (index, series) in self.series.iter().enumerate() {
            let shift = self.dodge(index);
            let mut points = series.points.clone();
            points.sort_by_key(|point| point.steps);
            let places: Vec<(i32, i32)> =
                points.iter().map(|point| at(place(point.steps) + shift, point.accuracy)).collect();
            line(area, index, &places)?;
            for (point, (x, y)) in points.iter().zip(places) {
                if let Some(error) = point.standard_error {
                    let (_, high) = at(0.0, (point.accuracy + error).min(1.0));
                    let (_, low) = at(0.0, (point.accuracy - error).max(0.0));
                    error_bar(area, index, x, high, low)?;
                }
                marker(area, index, (x, y))?;
            }
        }
        Ok(())
    }

    /// Steps that occur, at `log2(steps + 1)`.
    fn x_axis(&self) -> Axis {
        let mut steps: Vec<usize> = self.series.iter().flat_map(|s| &s.points).map(|point| point.steps).collect();
        steps.sort_unstable();
        steps.dedup();
        let all: Vec<f64> = steps.into_iter().map(place).collect();
        let (first, last) = (all[0], all[all.len() - 1]);
        // A label needs about this much room beside its neighbour.
        let apart = ((last - first) / 16.0).max(0.05);
        let mut ticks: Vec<f64> = Vec::new();
        for place in all {
            if ticks.last().is_none_or(|before| place - before >= apart) {
                ticks.push(place);
            }
        }
        let margin = 0.06 * (last - first).max(1.0);
        Axis { low: first - margin, high: last + margin, ticks }
    }

    /// Percent, from below the lowest error bar to above the highest.
    fn y_axis(&self) -> Axis {
        let spans = self
            .series
            .iter()
            .flat_map(|series| &series.points)
            .map(|point| (point.accuracy, point.standard_error))
            .chain(self.references.iter().map(|line| (line.accuracy, line.standard_error)))
            .map(|(accuracy, error)| (accuracy - error.unwrap_or(0.0), accuracy + error.unwrap_or(0.0)));
        let (low, high) = spans.fold((1.0_f64, 0.0_f64), |(low, high), (a, b)| (low.min(a), high.max(b)));
        // Below two points of height the curve would be noise blown up.
        let pad = (0.05 * (high - low)).max((0.02 - (high - low)) / 2.0).max(0.002);
        let mut axis = Axis::round(100.0 * (low - pad).max(0.0), 100.0 * (high + pad).min(1.0), 6);
        axis.ticks.retain(|tick| (-1e-9..=100.0 + 1e-9).contains(tick));
        axis.low = axis.low.max(0.0);
        axis.high = axis.high.min(100.0);
        axis
    }

    /// Series are set a little apart so that their error bars do not cover each other.
    fn dodge(&self, index: usize) -> f64 {
        0.05 * (index as f64 - (self.series.len() as f64 - 1.0) / 2.0)
    }

    fn reference_labels(&self) -> Vec<(f64, String)> {
        self.references.iter().map(|line| (line.accuracy, format!("{:.1}", 100.0 * line.accuracy))).collect()
    }

    fn legend(&self) -> Vec<LegendEntry<'_>> {
        let series = self.series.iter().enumerate().map(|(index, series)| LegendEntry {
            label: series.label.clone(),
            sample: Box::new(move |area, (x, y)| {
                let line = PathElement::new([(x - SAMPLE, y), (x + SAMPLE, y)], stroke(colour(index), 26));
                area.draw(&line).map_err(plot_error)?;
                marker(area, index, (x, y))
            }),
        });
        let references = self.references.iter().enumerate().map(|(index, line)| LegendEntry {
            label: line.label.clone(),
            sample: Box::new(move |area, (x, y)| {
                area.draw(&reference_line(index, x - SAMPLE, x + SAMPLE, y)).map_err(plot_error)
            }),
        });
        series.chain(references).collect()
    }
}

/// The runs at each place of the chart: its curve's name, its steps, and their values, one a seed.
fn by_point(runs: &[&RunReport], by_strength: bool) -> Vec<(String, usize, Vec<Proportion>)> {
    let mut points: Vec<(String, usize, Vec<Proportion>)> = Vec::new();
    for run in runs {
        let Some(value) = run.accuracy() else { continue };
        let label = match run.label.guidance.filter(|_| by_strength) {
            Some(strength) => format!("{}, guidance {strength}", run.label.series),
            None => run.label.series.clone(),
        };
        match points.iter_mut().find(|(name, steps, _)| *name == label && *steps == run.label.steps) {
            Some((_, _, values)) => values.push(value),
            None => points.push((label, run.label.steps, vec![value])),
        }
    }
    points
}

/// The mean of runs over the same questions with different seeds, and its standard error: the questions' own, which are
/// the same in all of them, so it does not shrink with their number.
pub(super) fn mean_of_runs(values: &[Proportion]) -> Option<(f64, Option<f64>)> {
    let n = values.len() as f64;
    let errors: Option<Vec<f64>> = values.iter().map(|value| value.standard_error).collect();
    let mean = values.iter().map(|value| value.mean).sum::<f64>() / n;
    (n > 0.0).then(|| (mean, errors.map(|errors| errors.iter().sum::<f64>() / n)))
}

/// Where a number of steps stands.
fn place(steps: usize) -> f64 {
    (steps as f64 + 1.0).log2()
}

/// A dashed line, its dashes shorter with every further reference.
fn reference_line(
    index: usize,
    from: i32,
    to: i32,
    y: i32,
) -> DashedPathElement<std::array::IntoIter<(i32, i32), 2>, i32> {
    let dash = [9, 2, 5][index % 3] * FINE;
    let gap = [5, 4, 3][index % 3] * FINE;
    DashedPathElement::new([(from, y), (to, y)], dash, gap, stroke(MUTED, 18))
}

/// Moves labels apart to at least `apart`, keeping their order and, where it can be, their places; `bottom` is the lowest
/// place. The answer is in the order of `wanted`.
fn spread(wanted: &[i32], apart: i32, bottom: i32) -> Vec<i32> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|index| wanted[*index]);
    let mut places = wanted.to_vec();
    for pair in order.windows(2) {
        let overlap = apart - (places[pair[1]] - places[pair[0]]);
        if overlap > 0 {
            places[pair[0]] -= overlap / 2;
            places[pair[1]] += overlap - overlap / 2;
        }
    }
    let mut limit = bottom;
    for index in order.iter().rev() {
        places[*index] = places[*index].min(limit);
        limit = places[*index] - apart;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::super::canvas::{HEIGHT, INK, WIDTH};
    use super::*;

    fn plot() -> AccuracyPlot {
        let series = |label: &str, values: &[(usize, f64)]| AccuracySeries {
            label: label.to_owned(),
            points: values
                .iter()
                .map(|(steps, accuracy)| AccuracyPoint {
                    steps: *steps,
                    accuracy: *accuracy,
                    standard_error: Some(0.02),
                })
                .collect(),
        };
        AccuracyPlot {
            title: "a < b & c".to_owned(),
            y_label: "accuracy, %".to_owned(),
            series: vec![series("live", &[(3, 0.5), (1, 0.45)]), series("shipped", &[(1, 0.45), (127, 0.7)])],
            references: vec![ReferenceLine { label: "greedy".to_owned(), accuracy: 0.6, standard_error: None }],
        }
    }

    #[test]
    fn the_scaling_points_stand_at_equal_distances() {
        let places: Vec<f64> = [1, 3, 7, 15, 31, 63, 127].map(place).to_vec();
        assert!(places.windows(2).all(|pair| (pair[1] - pair[0] - 1.0).abs() < 1e-12));
    }

    #[test]
    fn the_svg_names_what_it_shows_and_escapes_it() {
        let svg = plot().draw().unwrap().svg().to_owned();
        for text in ["a &lt; b &amp; c", "live", "shipped", "greedy", "127", "accuracy, %", "60.0"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(svg.starts_with(&format!("<svg width=\"{WIDTH}\" height=\"{HEIGHT}\"")), "{}", &svg[..80]);
        assert!(svg.contains(&format!("viewBox=\"0 0 {} {}\"", WIDTH * FINE, HEIGHT * FINE)));
    }

    #[test]
    fn numbers_that_cannot_be_drawn_are_refused() {
        assert!(AccuracyPlot::default().draw().is_err());
        for (accuracy, error, steps) in
            [(f64::NAN, None, 1), (1.1, None, 1), (0.5, Some(f64::INFINITY), 1), (0.5, None, 0)]
        {
            let mut plot = plot();
            plot.series[0].points[0] = AccuracyPoint { steps, accuracy, standard_error: error };
            assert!(matches!(plot.draw(), Err(Error::Plot(_))), "{accuracy} {error:?} {steps}");
        }
    }

    #[test]
    fn one_point_and_extremes_are_drawn() {
        for accuracy in [0.0, 1.0, 0.37] {
            let points = vec![AccuracyPoint { steps: 1, accuracy, standard_error: Some(0.0) }];
            let series = vec![AccuracySeries { label: String::new(), points }];
            AccuracyPlot { series, ..AccuracyPlot::default() }.draw().unwrap().png(1.0).unwrap();
        }
    }

    #[test]
    fn labels_move_apart_and_stay_inside() {
        assert_eq!(spread(&[100, 300], 50, 400), [100, 300]);
        assert_eq!(spread(&[210, 200], 50, 400), [230, 180]);
        assert_eq!(spread(&[390, 400], 50, 400), [350, 400]);
    }

    #[test]
    fn ink_is_dark_enough_to_read() {
        assert!([INK, MUTED].iter().all(|c| u32::from(c.0) + u32::from(c.1) + u32::from(c.2) < 330));
    }
}
