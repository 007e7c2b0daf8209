//! Charts, as SVG and as PNG. Text is set in a font that comes with the crate, so a chart looks the same on a machine
//! without fonts.

mod accuracy;
mod bars;
mod canvas;
mod curve;
mod loss;
mod marks;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb};

pub use accuracy::{AccuracyPlot, AccuracyPoint, AccuracySeries, ReferenceLine};
pub use bars::{EvaluationsBar, EvaluationsPlot};
pub use curve::{CurvePlot, CurvePoint, CurveScale, CurveSeries};
pub use loss::{LossPlot, LossScale, LossSeries};

use crate::error::{Error, Result};
use crate::write::write_atomically;

/// A drawn chart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chart {
    svg: String,
}

impl Chart {
    /// The SVG document.
    pub fn svg(&self) -> &str {
        &self.svg
    }

    /// The chart as PNG, `pixels_per_unit` pixels for each of the SVG's units: 2 is sharp on most screens.
    ///
    /// # Errors
    /// [`Error::Plot`] where the scale gives no picture of a sensible size (1 to 16384 pixels a side).
    pub fn png(&self, pixels_per_unit: f32) -> Result<Vec<u8>> {
        let mut fonts = fontdb::Database::new();
        fonts.load_font_data(canvas::FONT.to_vec());
        fonts.set_sans_serif_family(canvas::FONT_FAMILY);
        let options = Options { fontdb: Arc::new(fonts), ..Options::default() };
        let tree = Tree::from_str(&self.svg, &options).map_err(|error| Error::Plot(error.to_string()))?;
        let side = |units: f32| {
            let pixels = (units * pixels_per_unit).round();
            if (1.0..=16384.0).contains(&pixels) {
                Ok(pixels as u32)
            } else {
                Err(Error::Plot(format!("{pixels_per_unit} pixels per unit give a side of {pixels} pixels")))
            }
        };
        let (width, height) = (side(tree.size().width())?, side(tree.size().height())?);
        let mut pixmap = Pixmap::new(width, height)
            .ok_or_else(|| Error::Plot(format!("no picture of {width} x {height} pixels")))?;
        resvg::render(&tree, Transform::from_scale(pixels_per_unit, pixels_per_unit), &mut pixmap.as_mut());
        pixmap.encode_png().map_err(|error| Error::Plot(error.to_string()))
    }

    /// Writes `STEM.svg` and `STEM.png` (two pixels a unit) and returns their paths.
    ///
    /// # Errors
    /// [`Error::Io`] with the path, or [`Error::Plot`].
    pub fn save(&self, stem: &Path) -> Result<[PathBuf; 2]> {
        let name = stem.file_name().ok_or_else(|| Error::Plot(format!("{} names no file", stem.display())))?;
        let with = |extension: &str| {
            let mut name = name.to_owned();
            name.push(extension);
            stem.with_file_name(name)
        };
        let paths = [with(".svg"), with(".png")];
        write_atomically(&paths[0], self.svg.as_bytes())?;
        write_atomically(&paths[1], &self.png(2.0)?)?;
        Ok(paths)
    }
}
