//! What stands for measured numbers: lines, points, bars of error.

use plotters::prelude::*;

use super::canvas::{Area, FINE, colour, plot_error, stroke};
use crate::error::Result;

/// A curve through two points or more; one alone is only its marker.
pub(super) fn line(area: &Area<'_>, index: usize, places: &[(i32, i32)]) -> Result<()> {
    if places.len() < 2 {
        return Ok(());
    }
    area.draw(&PathElement::new(places.to_vec(), stroke(colour(index), 26))).map_err(plot_error)
}

/// One standard error to each side.
pub(super) fn error_bar(area: &Area<'_>, index: usize, x: i32, high: i32, low: i32) -> Result<()> {
    let style = stroke(colour(index), 16);
    let cap = 5 * FINE;
    // A path without length is no picture.
    if high == low {
        return Ok(());
    }
    for line in [[(x, high), (x, low)], [(x - cap, high), (x + cap, high)], [(x - cap, low), (x + cap, low)]] {
        area.draw(&PathElement::new(line, style)).map_err(plot_error)?;
    }
    Ok(())
}

/// A shape for each series, so that they differ without their colours, with a white rim that lifts it off the lines.
pub(super) fn marker(area: &Area<'_>, index: usize, (x, y): (i32, i32)) -> Result<()> {
    for (size, fill) in [(62, WHITE), (50, colour(index))] {
        let r = size * FINE / 10;
        let style = fill.filled();
        let shape: Vec<(i32, i32)> = match index % 4 {
            0 => {
                area.draw(&Circle::new((x, y), r, style)).map_err(plot_error)?;
                continue;
            }
            1 => {
                let r = r * 9 / 10;
                vec![(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)]
            }
            2 => vec![(x, y - r * 13 / 10), (x + r * 12 / 10, y + r * 8 / 10), (x - r * 12 / 10, y + r * 8 / 10)],
            _ => {
                let r = r * 13 / 10;
                vec![(x, y - r), (x + r, y), (x, y + r), (x - r, y)]
            }
        };
        area.draw(&Polygon::new(shape, style)).map_err(plot_error)?;
    }
    Ok(())
}
