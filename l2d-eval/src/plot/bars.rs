//! Evaluations a token of adaptive solvers, task by task.

use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::Chart;
use super::canvas::{
    Area, Axis, AxisText, FINE, INK, LegendEntry, MUTED, SAMPLE, TEXT_SIZE, anchored, axes, colour, draw, heading,
    plot_error, stroke,
};
use crate::error::{Error, Result};
use crate::metric::quartiles;
use crate::runner::RunResult;

/// One bar.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluationsBar {
    /// The task.
    pub label: String,
    /// Mean evaluations over all tokens.
    pub mean: f64,
    /// The first and third quartile of the answers' own means.
    pub quartiles: Option<[f64; 2]>,
}

impl EvaluationsBar {
    /// The bar of a run; `None` without tokens.
    pub fn of(label: impl Into<String>, result: &RunResult) -> Option<Self> {
        let tokens: usize = result.samples.iter().map(|sample| sample.completion.tokens).sum();
        let evaluations: usize = result.samples.iter().map(|sample| sample.completion.evaluations).sum();
        let each = result.samples.iter().map(|sample| &sample.completion).filter(|completion| completion.tokens > 0);
        let each: Vec<f64> = each.map(|c| c.evaluations as f64 / c.tokens as f64).collect();
        (tokens > 0).then(|| Self {
            label: label.into(),
            mean: evaluations as f64 / tokens as f64,
            quartiles: quartiles(&each),
        })
    }
}

/// The chart's content.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EvaluationsPlot {
    /// The title; may be empty.
    pub title: String,
    /// The bars, from left to right.
    pub bars: Vec<EvaluationsBar>,
    /// A fixed budget to compare with.
    pub budget: Option<f64>,
}

impl EvaluationsPlot {
    /// Draws the chart (as the paper's Figure 4).
    ///
    /// # Errors
    /// [`Error::Plot`] where there is no bar, or a number is not finite or below 0.
    pub fn draw(&self) -> Result<Chart> {
        self.check()?;
        let svg = draw(|area| self.paint(area))?;
        Ok(Chart { svg })
    }

    fn check(&self) -> Result<()> {
        if self.bars.is_empty() {
            return Err(Error::Plot("there is no bar to draw".to_owned()));
        }
        for bar in &self.bars {
            let numbers = bar.quartiles.into_iter().flatten().chain([bar.mean]).chain(self.budget);
            if let Some(bad) = numbers.into_iter().find(|number| !(number.is_finite() && *number >= 0.0)) {
                return Err(Error::Plot(format!("`{}`: {bad} is no number of evaluations", bar.label)));
            }
        }
        Ok(())
    }

    fn paint(&self, area: &Area<'_>) -> Result<()> {
        let top = heading(area, &self.title, &self.legend())?;
        let count = self.bars.len() as f64;
        let x = Axis { low: -0.5, high: count - 0.5, ticks: (0..self.bars.len()).map(|i| i as f64).collect() };
        // Names that would run into each other are written as short as they must be.
        let room = (90 / self.bars.len()).max(4);
        let name = |place: &f64| {
            let label = self.bars.get(place.round() as usize).map_or("", |bar| bar.label.as_str());
            let short: String = label.chars().take(room).collect();
            if short.len() < label.len() { format!("{short}…") } else { short }
        };
        let largest = self.bars.iter().flat_map(|bar| bar.quartiles.into_iter().flatten().chain([bar.mean]));
        let largest = largest.chain(self.budget).fold(1.0_f64, f64::max);
        let y = Axis::round(0.0, 1.08 * largest, 6);
        let y_text = AxisText { name: "evaluations per token", format: &|value| format!("{value:.0}") };
        let chart = axes(area, top, 28 * FINE, (x, AxisText { name: "", format: &name }), (y, y_text))?;
        let plane = chart.plotting_area();
        let at = |x: f64, y: f64| plane.map_coordinate(&(x, y));
        let (x_pixels, _) = plane.get_pixel_range();
        // A few bars are not as wide as the chart.
        let half = 0.32_f64.min(0.08 * count);
        for (index, bar) in self.bars.iter().enumerate() {
            let place = index as f64;
            let (left, high) = at(place - half, bar.mean);
            let (right, low) = at(place + half, 0.0);
            area.draw(&Rectangle::new([(left, high), (right, low)], colour(0).filled())).map_err(plot_error)?;
            let mut above = high;
            if let Some([first, third]) = bar.quartiles {
                let (x, from) = at(place, first);
                let (_, to) = at(place, third);
                let cap = 7 * FINE;
                if from != to {
                    for line in
                        [[(x, from), (x, to)], [(x - cap, from), (x + cap, from)], [(x - cap, to), (x + cap, to)]]
                    {
                        area.draw(&PathElement::new(line, stroke(INK, 16))).map_err(plot_error)?;
                    }
                }
                above = above.min(to);
            }
            let style = anchored(TEXT_SIZE - 2, &INK, HPos::Center, VPos::Bottom);
            let label = Text::new(format!("{:.1}", bar.mean), ((left + right) / 2, above - 5 * FINE), style);
            area.draw(&label).map_err(plot_error)?;
        }
        if let Some(budget) = self.budget {
            let (_, y) = at(0.0, budget);
            area.draw(&budget_line(x_pixels.start, x_pixels.end, y)).map_err(plot_error)?;
        }
        Ok(())
    }

    fn legend(&self) -> Vec<LegendEntry<'_>> {
        let bars = LegendEntry {
            label: "mean; bars of answers' quartiles".to_owned(),
            sample: Box::new(|area, (x, y)| {
                let half = 6 * FINE;
                let shape = Rectangle::new([(x - half, y - half), (x + half, y + half)], colour(0).filled());
                area.draw(&shape).map_err(plot_error)
            }),
        };
        let budget = self.budget.map(|budget| LegendEntry {
            label: format!("fixed budget of {budget}"),
            sample: Box::new(|area, (x, y)| area.draw(&budget_line(x - SAMPLE, x + SAMPLE, y)).map_err(plot_error)),
        });
        std::iter::once(bars).chain(budget).collect()
    }
}

fn budget_line(from: i32, to: i32, y: i32) -> DashedPathElement<std::array::IntoIter<(i32, i32), 2>, i32> {
    DashedPathElement::new([(from, y), (to, y)], 9 * FINE, 5 * FINE, stroke(MUTED, 18))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(label: &str, mean: f64) -> EvaluationsBar {
        EvaluationsBar { label: label.to_owned(), mean, quartiles: Some([mean * 0.9, mean * 1.2]) }
    }

    #[test]
    fn bars_are_named_and_valued() {
        let bars = vec![bar("gsm8k", 118.33), bar("a<b", 80.0)];
        let plot = EvaluationsPlot { title: "dopri5".to_owned(), bars, budget: Some(15.0) };
        let chart = plot.draw().unwrap();
        for text in ["gsm8k", "a&lt;b", "118.3", "fixed budget of 15"] {
            assert!(chart.svg().contains(text), "{text}");
        }
        chart.png(1.0).unwrap();
        let many = (0..12).map(|i| bar(&format!("a_long_name_{i}"), f64::from(i))).collect();
        EvaluationsPlot { bars: many, ..plot }.draw().unwrap().png(1.0).unwrap();
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        assert!(EvaluationsPlot::default().draw().is_err());
        let error = EvaluationsPlot { bars: vec![bar("x", f64::NAN)], ..Default::default() }.draw().unwrap_err();
        assert!(error.to_string().contains("`x`: NaN is no number of evaluations"));
    }
}
