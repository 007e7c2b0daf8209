//! What the charts share: font, colours, axes, legend, and the way from plotters' whole pixels to a smooth SVG.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};

use crate::error::{Error, Result};

/// Inter Medium, Latin and Greek only (SIL Open Font License 1.1, beside the file).
pub(super) const FONT: &[u8] = include_bytes!("../../assets/fonts/Inter-Medium-Latin.otf");
/// The family name in the file.
pub(super) const FONT_FAMILY: &str = "Inter Medium";

/// plotters places everything on whole pixels; drawing this many times larger and shrinking by the view box makes that
/// invisible.
pub(super) const FINE: i32 = 10;

/// Size of a chart in SVG units.
pub(super) const WIDTH: i32 = 820;
/// Size of a chart in SVG units.
pub(super) const HEIGHT: i32 = 500;

/// Okabe and Ito's palette, told apart with every common colour blindness; yellow is left out, it is too pale for lines.
const PALETTE: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

pub(super) const INK: RGBColor = RGBColor(31, 35, 40);
pub(super) const MUTED: RGBColor = RGBColor(87, 96, 106);
const GRID: RGBColor = RGBColor(228, 231, 235);

pub(super) const TITLE_SIZE: i32 = 24;
pub(super) const TEXT_SIZE: i32 = 17;

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The colour of the series with this number.
pub(super) fn colour(index: usize) -> RGBColor {
    PALETTE[index % PALETTE.len()]
}

/// Any error of the drawing library.
pub(super) fn plot_error(error: impl std::fmt::Display) -> Error {
    Error::Plot(error.to_string())
}

/// Text of a size in SVG units.
pub(super) fn text_style(size: i32, colour: &RGBColor) -> TextStyle<'static> {
    ("sans-serif", size * FINE).into_font().color(colour)
}

/// The same, hung on a point.
pub(super) fn anchored(size: i32, colour: &RGBColor, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    text_style(size, colour).pos(Pos::new(horizontal, vertical))
}

/// A stroke of a width in tenths of an SVG unit.
pub(super) fn stroke(colour: impl Color, tenths: i32) -> ShapeStyle {
    ShapeStyle { color: colour.to_rgba(), filled: false, stroke_width: (tenths * FINE / 10) as u32 }
}

/// Width of a text in fine pixels.
pub(super) fn text_width(area: &Area<'_>, text: &str, size: i32) -> Result<i32> {
    let (width, _) = area.estimate_text_size(text, &text_style(size, &INK)).map_err(plot_error)?;
    Ok(width as i32)
}

/// Draws on a fresh canvas and returns the SVG.
pub(super) fn draw(paint: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    register_font("sans-serif", FontStyle::Normal, FONT)
        .map_err(|_| Error::Plot("the embedded font is broken".to_owned()))?;
    let mut svg = String::new();
    {
        let area =
            SVGBackend::with_string(&mut svg, ((WIDTH * FINE) as u32, (HEIGHT * FINE) as u32)).into_drawing_area();
        area.fill(&WHITE).map_err(plot_error)?;
        paint(&area)?;
        area.present().map_err(plot_error)?;
    }
    // Only the outer size shrinks; the view box keeps the fine coordinates.
    let fine = format!("width=\"{}\" height=\"{}\"", WIDTH * FINE, HEIGHT * FINE);
    let svg = svg.replacen(&fine, &format!("width=\"{WIDTH}\" height=\"{HEIGHT}\""), 1);
    Ok(svg)
}

/// An axis with ticks exactly where they are wanted.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) ticks: Vec<f64>,
}

impl Axis {
    /// Round ticks (steps of 1, 2 or 5 times a power of ten), about `count` of them, and ends on ticks.
    pub(super) fn round(low: f64, high: f64, count: usize) -> Self {
        let span = if high > low { high - low } else { low.abs().max(1.0) };
        let raw = span / count.max(1) as f64;
        let magnitude = 10_f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * magnitude).into_iter().find(|step| *step >= raw * 0.999);
        let step = step.unwrap_or(10.0 * magnitude);
        let (first, last) = ((low / step + 1e-9).floor(), ((low + span) / step - 1e-9).ceil());
        let ticks = (0..=(last - first) as usize).map(|i| (first + i as f64) * step).collect();
        Self { low: first * step, high: last * step, ticks }
    }

    /// The distance of two neighbouring ticks.
    pub(super) fn tick_spacing(&self) -> f64 {
        self.ticks.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min)
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        let part = (value - self.low) / (self.high - self.low);
        start + (part * f64::from(end - start)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Light lines would come between the ticks; there are none.
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {}

/// The drawing area inside the axes.
pub(super) type Plane<'a, 'b> = ChartContext<'b, SVGBackend<'a>, Cartesian2d<Axis, Axis>>;

/// How an axis is named and its ticks written.
pub(super) struct AxisText<'a> {
    pub(super) name: &'a str,
    pub(super) format: &'a dyn Fn(&f64) -> String,
}

/// Draws grid and axes into `area` (fine pixels below `top` are left free), with `right` fine pixels free at the right.
pub(super) fn axes<'a, 'b>(
    area: &'b Area<'a>,
    top: i32,
    right: i32,
    x: (Axis, AxisText<'_>),
    y: (Axis, AxisText<'_>),
) -> Result<Plane<'a, 'b>> {
    let (x, x_text) = x;
    let (y, y_text) = y;
    let mut chart = ChartBuilder::on(area)
        .margin_top(top)
        .margin_right(right)
        .margin_left(14 * FINE)
        .margin_bottom(12 * FINE)
        .x_label_area_size(52 * FINE)
        .y_label_area_size(62 * FINE)
        .build_cartesian_2d(x, y)
        .map_err(plot_error)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(stroke(GRID, 10))
        .axis_style(stroke(MUTED, 10))
        .set_all_tick_mark_size(5 * FINE)
        .x_label_formatter(x_text.format)
        .y_label_formatter(y_text.format)
        .label_style(text_style(TEXT_SIZE, &INK))
        .axis_desc_style(text_style(TEXT_SIZE, &MUTED))
        .x_desc(x_text.name)
        .y_desc(y_text.name)
        .draw()
        .map_err(plot_error)?;
    Ok(chart)
}

/// One entry of the legend: a label and how its sample is drawn around a centre point.
pub(super) struct LegendEntry<'a> {
    pub(super) label: String,
    pub(super) sample: Box<dyn Fn(&Area<'_>, (i32, i32)) -> Result<()> + 'a>,
}

/// Half the length of a legend's sample line, in fine pixels.
pub(super) const SAMPLE: i32 = 15 * FINE;

/// Draws title and legend from the top, the legend in as many lines as its labels need; returns the first free fine pixel.
pub(super) fn heading(area: &Area<'_>, title: &str, legend: &[LegendEntry<'_>]) -> Result<i32> {
    let left = 22 * FINE;
    let right = (WIDTH - 22) * FINE;
    let mut y = 16 * FINE;
    if !title.is_empty() {
        let title = fit(area, title, TITLE_SIZE, right - left)?;
        area.draw(&Text::new(title, (left, y), anchored(TITLE_SIZE, &INK, HPos::Left, VPos::Top)))
            .map_err(plot_error)?;
        y += 36 * FINE;
    }
    let line = 25 * FINE;
    let mut x = left;
    for entry in legend {
        let room = right - left - 2 * SAMPLE - 10 * FINE;
        let label = fit(area, &entry.label, TEXT_SIZE, room)?;
        let width = 2 * SAMPLE + 9 * FINE + text_width(area, &label, TEXT_SIZE)?;
        if x > left && x + width > right {
            x = left;
            y += line;
        }
        let middle = y + line / 2;
        (entry.sample)(area, (x + SAMPLE, middle))?;
        let at = (x + 2 * SAMPLE + 9 * FINE, middle);
        area.draw(&Text::new(label, at, anchored(TEXT_SIZE, &INK, HPos::Left, VPos::Center))).map_err(plot_error)?;
        x += width + 26 * FINE;
    }
    Ok(if legend.is_empty() { y } else { y + line } + 14 * FINE)
}

/// The text, cut with an ellipsis where it is wider than `room` fine pixels.
fn fit(area: &Area<'_>, text: &str, size: i32, room: i32) -> Result<String> {
    if text_width(area, text, size)? <= room {
        return Ok(text.to_owned());
    }
    let mut kept: Vec<char> = text.chars().collect();
    while kept.pop().is_some() {
        let cut: String = kept.iter().chain(&['…']).collect();
        if text_width(area, &cut, size)? <= room {
            return Ok(cut);
        }
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_on_round_ticks() {
        for (low, high, ticks) in [
            (53.0, 71.0, vec![50.0, 55.0, 60.0, 65.0, 70.0, 75.0]),
            (0.0, 100.0, vec![0.0, 20.0, 40.0, 60.0, 80.0, 100.0]),
            (3.0, 3.0, vec![3.0, 4.0, 5.0, 6.0]),
        ] {
            let axis = Axis::round(low, high, 5);
            if low == high {
                assert!(axis.low <= low && axis.high > high, "{axis:?}");
            } else {
                assert_eq!(axis.ticks, ticks, "{axis:?}");
            }
        }
    }
}
