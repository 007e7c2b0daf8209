//! Percentages against a number: along the diffusion's time, against the strength of guidance, against the answers looked at.

use plotters::element::DashedPathElement;

use super::Chart;
use super::accuracy::mean_of_runs;
use super::canvas::{Area, Axis, AxisText, FINE, LegendEntry, SAMPLE, axes, colour, draw, heading, plot_error, stroke};
use super::marks::{error_bar, line, marker};
use crate::error::{Error, Result};
use crate::metric::{PassAtK, Proportion};
use crate::report::{RunLabel, RunReport};

/// How the horizontal axis is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CurveScale {
    /// Evenly.
    #[default]
    Linear,
    /// Doublings at equal distances; for numbers from 1 on.
    Doublings,
}

/// One measured point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CurvePoint {
    /// Where it stands.
    pub x: f64,
    /// A share in [0, 1].
    pub share: f64,
    /// Its standard error, drawn as a bar of one to each side.
    pub standard_error: Option<f64>,
}

/// Points joined by a line.
#[derive(Debug, Clone, PartialEq)]
pub struct CurveSeries {
    /// Its name in the legend.
    pub label: String,
    /// Which of the colours and markers it has, from 0.
    pub colour: usize,
    /// Whether the line is dashed and its points have no markers: a quantity of another kind beside the first.
    pub dashed: bool,
    /// Its points, in any order.
    pub points: Vec<CurvePoint>,
}

/// The chart's content.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CurvePlot {
    /// The title; may be empty.
    pub title: String,
    /// The name of the horizontal axis.
    pub x_label: String,
    /// The name of the vertical axis.
    pub y_label: String,
    /// How the horizontal axis is divided.
    pub scale: CurveScale,
    /// The curves.
    pub series: Vec<CurveSeries>,
}

impl CurvePlot {
    /// Right answers and agreement with the final tokens along the diffusion's time (as the paper's Figure 3); `None` where
    /// no run looked at it.
    pub fn along_time(title: impl Into<String>, runs: &[RunReport]) -> Option<Self> {
        let looked: Vec<&RunReport> = runs.iter().filter(|run| !run.along.is_empty()).collect();
        let mut series = Vec::new();
        for (colour, (name, runs)) in by_setting(&looked).into_iter().enumerate() {
            let times = runs.iter().map(|run| run.along.len()).min().unwrap_or(0);
            let mean = |x: f64, values: Vec<Proportion>| {
                mean_of_runs(&values).map(|(share, standard_error)| CurvePoint { x, share, standard_error })
            };
            let at =
                |place: usize| mean(runs[0].along[place].t, runs.iter().map(|run| run.along[place].score).collect());
            let last = mean(1.0, runs.iter().filter_map(|run| run.accuracy()).collect());
            let points = (0..times).filter_map(at).chain(last).collect();
            series.push(CurveSeries { label: format!("right answers, {name}"), colour, dashed: false, points });
            let agreement = |place: usize| {
                let share = runs.iter().map(|run| run.along[place].agreement).sum::<f64>() / runs.len() as f64;
                CurvePoint { x: runs[0].along[place].t, share, standard_error: None }
            };
            let last = CurvePoint { x: 1.0, share: 1.0, standard_error: None };
            let points = (0..times).map(agreement).chain([last]).collect();
            series.push(CurveSeries { label: format!("tokens as in the end, {name}"), colour, dashed: true, points });
        }
        (!series.is_empty()).then(|| Self {
            title: title.into(),
            x_label: "diffusion time t".to_owned(),
            y_label: "%".to_owned(),
            scale: CurveScale::Linear,
            series,
        })
    }

    /// The score against the strength of guidance, a curve for each number of steps (as the paper's Figure 5); `None` where
    /// there are fewer than two strengths.
    pub fn guidance(title: impl Into<String>, runs: &[RunReport]) -> Option<Self> {
        let mut series: Vec<(String, Vec<(f64, Vec<Proportion>)>)> = Vec::new();
        for run in runs {
            let (Some(strength), Some(value)) = (run.label.guidance, run.accuracy()) else { continue };
            let label = format!("{}, {} steps", run.label.series, run.label.steps);
            let place = series.iter().position(|(name, _)| *name == label).unwrap_or_else(|| {
                series.push((label, Vec::new()));
                series.len() - 1
            });
            let points = &mut series[place].1;
            match points.iter_mut().find(|(x, _)| *x == strength) {
                Some((_, values)) => values.push(value),
                None => points.push((strength, vec![value])),
            }
        }
        let several = series.iter().any(|(_, points)| points.len() > 1);
        let curve = |(colour, (label, points)): (usize, (String, Vec<(f64, Vec<Proportion>)>))| {
            let point = |(x, values): (f64, Vec<Proportion>)| {
                mean_of_runs(&values).map(|(share, standard_error)| CurvePoint { x, share, standard_error })
            };
            CurveSeries { label, colour, dashed: false, points: points.into_iter().filter_map(point).collect() }
        };
        several.then(|| Self {
            title: title.into(),
            x_label: "strength of guidance (0 = without the class)".to_owned(),
            y_label: "right answers, %".to_owned(),
            scale: CurveScale::Linear,
            series: series.into_iter().enumerate().map(curve).collect(),
        })
    }

    /// Questions that at least one of N answers gets right, against N; `None` where each was answered once.
    pub fn best_of(title: impl Into<String>, runs: &[RunReport]) -> Option<Self> {
        let several: Vec<&RunReport> = runs.iter().filter(|run| run.pass_at_k.len() > 1).collect();
        let curve = |(colour, (label, runs)): (usize, (String, Vec<&RunReport>))| {
            let point = |pass: &PassAtK| {
                let all: Vec<PassAtK> = runs.iter().filter_map(|run| run.pass_at(pass.k)).collect();
                let n = all.len() as f64;
                let errors: Option<Vec<f64>> = all.iter().map(|pass| pass.standard_error).collect();
                CurvePoint {
                    x: pass.k as f64,
                    share: all.iter().map(|pass| pass.mean).sum::<f64>() / n,
                    standard_error: errors.map(|errors| errors.iter().sum::<f64>() / n),
                }
            };
            CurveSeries { label, colour, dashed: false, points: runs[0].pass_at_k.iter().map(point).collect() }
        };
        let series: Vec<CurveSeries> = by_setting(&several).into_iter().enumerate().map(curve).collect();
        (!series.is_empty()).then(|| Self {
            title: title.into(),
            x_label: "answers to each question, N (log scale)".to_owned(),
            y_label: "questions with a right answer among N, %".to_owned(),
            scale: CurveScale::Doublings,
            series,
        })
    }

    /// Draws the chart.
    ///
    /// # Errors
    /// [`Error::Plot`] where there is no point, or a number is not finite or out of its range.
    pub fn draw(&self) -> Result<Chart> {
        self.check()?;
        let svg = draw(|area| self.paint(area))?;
        Ok(Chart { svg })
    }

    fn check(&self) -> Result<()> {
        if self.series.iter().all(|series| series.points.is_empty()) {
            return Err(Error::Plot("there is no point to draw".to_owned()));
        }
        for series in &self.series {
            for point in &series.points {
                let lowest = if self.scale == CurveScale::Doublings { 1.0 } else { f64::MIN };
                let bad = |what: String| Err(Error::Plot(format!("`{}`: {what}", series.label)));
                if !point.x.is_finite() || point.x < lowest {
                    return bad(format!("{} has no place on the axis", point.x));
                }
                if !(0.0..=1.0).contains(&point.share) {
                    return bad(format!("{} is not in [0, 1]", point.share));
                }
                if point.standard_error.is_some_and(|error| !(error.is_finite() && error >= 0.0)) {
                    return bad(format!("standard error {:?} is not a number of 0 or above", point.standard_error));
                }
            }
        }
        Ok(())
    }

    fn place(&self, x: f64) -> f64 {
        match self.scale {
            CurveScale::Linear => x,
            CurveScale::Doublings => x.log2(),
        }
    }

    fn paint(&self, area: &Area<'_>) -> Result<()> {
        let top = heading(area, &self.title, &self.legend())?;
        let x = self.x_axis();
        let x_decimals = decimals(x.tick_spacing());
        let x_text = AxisText {
            name: &self.x_label,
            format: &|place| match self.scale {
                CurveScale::Linear => format!("{place:.x_decimals$}"),
                CurveScale::Doublings => format!("{:.0}", place.exp2()),
            },
        };
        let y = self.y_axis();
        let y_decimals = decimals(y.tick_spacing());
        let y_text = AxisText { name: &self.y_label, format: &|percent| format!("{percent:.y_decimals$}") };
        let chart = axes(area, top, 28 * FINE, (x, x_text), (y, y_text))?;
        let plane = chart.plotting_area();
        let at = |x: f64, share: f64| plane.map_coordinate(&(self.place(x), 100.0 * share));
        for series in &self.series {
            let index = series.colour;
            let mut points = series.points.clone();
            points.sort_by(|a, b| a.x.total_cmp(&b.x));
            let places: Vec<(i32, i32)> = points.iter().map(|point| at(point.x, point.share)).collect();
            if series.dashed {
                if places.len() > 1 {
                    area.draw(&dashed(index, places)).map_err(plot_error)?;
                }
                continue;
            }
            line(area, index, &places)?;
            for (point, (x, y)) in points.iter().zip(places) {
                if let Some(error) = point.standard_error {
                    let (_, high) = at(point.x, (point.share + error).min(1.0));
                    let (_, low) = at(point.x, (point.share - error).max(0.0));
                    error_bar(area, index, x, high, low)?;
                }
                marker(area, index, (x, y))?;
            }
        }
        Ok(())
    }

    fn points(&self) -> impl Iterator<Item = &CurvePoint> {
        self.series.iter().flat_map(|series| &series.points)
    }

    fn x_axis(&self) -> Axis {
        let places = self.points().map(|point| self.place(point.x));
        let (low, high) = places.fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)));
        let mut axis = match self.scale {
            CurveScale::Linear => Axis::round(low, high, 8),
            CurveScale::Doublings => {
                let ticks = (low.floor() as i32..=high.ceil() as i32).map(f64::from).collect();
                Axis { low, high, ticks }
            }
        };
        axis.low = axis.low.min(low);
        axis.high = axis.high.max(high);
        let margin = 0.03 * (axis.high - axis.low).max(0.5);
        Axis { low: axis.low - margin, high: axis.high + margin, ..axis }
    }

    /// Percent, from below the lowest error bar to above the highest.
    fn y_axis(&self) -> Axis {
        let span = |point: &CurvePoint| {
            let error = point.standard_error.unwrap_or(0.0);
            (point.share - error, point.share + error)
        };
        let (low, high) = self.points().map(span).fold((1.0_f64, 0.0_f64), |(l, h), (a, b)| (l.min(a), h.max(b)));
        let pad = (0.05 * (high - low)).max((0.02 - (high - low)) / 2.0).max(0.002);
        let mut axis = Axis::round(100.0 * (low - pad).max(0.0), 100.0 * (high + pad).min(1.0), 6);
        axis.ticks.retain(|tick| (-1e-9..=100.0 + 1e-9).contains(tick));
        axis.low = axis.low.max(0.0);
        // Room for a marker at the very top.
        axis.high = axis.high.min(101.5);
        axis
    }

    fn legend(&self) -> Vec<LegendEntry<'_>> {
        let entry = |series: &CurveSeries| {
            let (index, dash) = (series.colour, series.dashed);
            LegendEntry {
                label: series.label.clone(),
                sample: Box::new(move |area, (x, y)| {
                    let ends = [(x - SAMPLE, y), (x + SAMPLE, y)];
                    if dash {
                        return area.draw(&dashed(index, ends.to_vec())).map_err(plot_error);
                    }
                    line(area, index, &ends)?;
                    marker(area, index, (x, y))
                }),
            }
        };
        self.series.iter().map(entry).collect()
    }
}

/// Runs that differ in nothing but their seed, under what they have in common.
fn by_setting<'a>(runs: &[&'a RunReport]) -> Vec<(String, Vec<&'a RunReport>)> {
    let mut groups: Vec<(String, Vec<&RunReport>)> = Vec::new();
    let series = runs.first().map(|run| &run.label.series);
    let several = runs.iter().any(|run| Some(&run.label.series) != series);
    for run in runs {
        let RunLabel { series, steps, guidance } = &run.label;
        let series = if several { format!("{series}, ") } else { String::new() };
        let guidance = guidance.map_or_else(String::new, |strength| format!(", guidance {strength}"));
        let plural = if *steps == 1 { "" } else { "s" };
        let name = format!("{series}{steps} step{plural}{guidance}");
        match groups.iter_mut().find(|(known, _)| *known == name) {
            Some((_, runs)) => runs.push(run),
            None => groups.push((name, vec![run])),
        }
    }
    groups
}

fn dashed(index: usize, places: Vec<(i32, i32)>) -> DashedPathElement<std::vec::IntoIter<(i32, i32)>, i32> {
    DashedPathElement::new(places, 9 * FINE, 5 * FINE, stroke(colour(index), 26))
}

/// Decimals that tell ticks of this distance apart.
fn decimals(spacing: f64) -> usize {
    if spacing >= 1.0 || !spacing.is_finite() { 0 } else { (-spacing.log10()).ceil().max(1.0) as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(scale: CurveScale, points: &[(f64, f64)]) -> CurvePlot {
        let points =
            points.iter().map(|&(x, share)| CurvePoint { x, share, standard_error: Some(0.03) }).collect::<Vec<_>>();
        let series =
            |label: &str, dashed| CurveSeries { label: label.to_owned(), colour: 0, dashed, points: points.clone() };
        CurvePlot {
            title: "T & t".to_owned(),
            x_label: "x".to_owned(),
            y_label: "y".to_owned(),
            scale,
            series: vec![series("<one>", false), series("two", true)],
        }
    }

    #[test]
    fn curves_are_named_and_ticks_are_those_of_the_scale() {
        let doublings = plot(CurveScale::Doublings, &[(1.0, 0.1), (10.0, 0.5), (16.0, 0.6)]).draw().unwrap();
        for text in ["T &amp; t", "&lt;one&gt;", "two", "\n16\n", "\n8\n"] {
            assert!(doublings.svg().contains(text), "{text}");
        }
        let linear = plot(CurveScale::Linear, &[(0.0, 0.1), (2.5, 0.9)]).draw().unwrap();
        assert!(linear.svg().contains("2.5"));
        assert_eq!((decimals(0.2), decimals(0.05), decimals(1.0), decimals(5.0)), (1, 2, 0, 0));
    }

    #[test]
    fn one_point_many_series_and_extremes_are_drawn() {
        for share in [0.0, 1.0] {
            for scale in [CurveScale::Linear, CurveScale::Doublings] {
                plot(scale, &[(1.0, share)]).draw().unwrap().png(1.0).unwrap();
            }
        }
        let mut many = plot(CurveScale::Linear, &[(0.0, 0.3), (1.0, 0.4)]);
        let one = many.series[0].clone();
        many.series = (0..12)
            .map(|i| CurveSeries { label: format!("{i} {}", "名 long ".repeat(20)), colour: i, ..one.clone() })
            .collect();
        many.draw().unwrap().png(1.0).unwrap();
    }

    #[test]
    fn what_cannot_be_drawn_is_refused_by_name() {
        assert!(CurvePlot::default().draw().is_err());
        let refused = |scale, x: f64, share: f64| plot(scale, &[(x, share)]).draw().unwrap_err().to_string();
        assert!(refused(CurveScale::Linear, f64::NAN, 0.1).contains("`<one>`: NaN has no place"));
        assert!(refused(CurveScale::Doublings, 0.5, 0.1).contains("0.5 has no place"));
        assert!(refused(CurveScale::Linear, 1.0, 1.5).contains("1.5 is not in [0, 1]"));
    }
}
