//! Charts as drawings in the page, by plotters. Their colours are set by the page's style, so that they follow light and dark.

use jiff::tz::TimeZone;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::html::escaped;
use crate::view::plain;

/// As wide as a phone can show with readable text; the page lets it grow a little.
const SIZE: (u32, u32) = (640, 300);
/// Stand for the colour of text and of the grid.
const INK: RGBColor = RGBColor(1, 2, 3);
const GRID: RGBColor = RGBColor(4, 5, 6);
/// Okabe and Ito's colours, which people with any kind of colour blindness tell apart, on light and on dark.
pub(super) const COLORS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// One line of a chart.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    pub(super) name: String,
    /// Its place in [`COLORS`].
    pub(super) color: usize,
    /// Seconds since the Unix epoch, and the value.
    pub(super) points: Vec<(f64, f64)>,
    /// Points that are marked.
    pub(super) marks: Vec<(f64, f64)>,
}

/// Draws lines over time. The label is read out where nobody sees the drawing.
pub(super) fn draw(label: &str, lines: &[Line], zone: &TimeZone) -> anyhow::Result<String> {
    let mut svg = String::new();
    let frame =
        paint(&mut svg, lines, zone).map_err(|error| anyhow::anyhow!("cannot draw a chart: {error}"))?;
    let Frame { x: (left, right), bottom, from, to } = frame;
    // What the script needs to zoom: its clock has no zone. The root comes with a fixed size; the page sets its own.
    let ahead = offset(from, zone);
    let start = format!(
        "<svg role=\"img\" aria-label=\"{}\" data-left=\"{left}\" data-right=\"{right}\" data-bottom=\"{bottom}\" data-from=\"{:.3}\" data-to=\"{:.3}\" ",
        escaped(label),
        from + ahead,
        to + ahead,
    );
    Ok(svg.replacen("<svg ", &start, 1))
}

/// Where in the drawing which time is.
struct Frame {
    x: (i32, i32),
    bottom: i32,
    from: f64,
    to: f64,
}

/// Seconds that the zone is ahead of UTC at a time.
fn offset(at: f64, zone: &TimeZone) -> f64 {
    let time = jiff::Timestamp::from_nanosecond(nanoseconds(at)).unwrap_or(jiff::Timestamp::MAX);
    f64::from(zone.to_offset(time).seconds())
}

fn paint(svg: &mut String, lines: &[Line], zone: &TimeZone) -> Result<Frame, Box<dyn std::error::Error>> {
    let all = || lines.iter().flat_map(|line| &line.points);
    let (from, to) = all().fold((f64::MAX, f64::MIN), |(from, to), (at, _)| (from.min(*at), to.max(*at)));
    // From 0 on: steps on an axis must not vanish beside a large number. One report has no extent.
    let (start, shown) = (from, (to - from).clamp(0.1, 1e12));
    let highest = all().map(|(_, value)| *value).fold(0.0, f64::max).max(1.0) * 1.05;
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let font = ("sans-serif", 20).into_font().color(&INK);
    let mut chart = ChartBuilder::on(&root)
        .margin(8)
        // Half a label, for one at the upper end, which a phone shows larger.
        .margin_top(20)
        .margin_right(24)
        .x_label_area_size(46)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..shown, 0.0..highest)?;
    let time = |at: &f64| label(start + at, shown, zone);
    chart
        .configure_mesh()
        // Away from the lowest label of the other axis, which a phone shows larger.
        .set_tick_mark_size(LabelAreaPosition::Bottom, 12)
        .x_labels(4)
        .y_labels(5)
        .x_label_formatter(&time)
        .y_label_formatter(&|value| short(*value))
        .axis_style(INK)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .x_label_style(font.clone().pos(Pos::new(HPos::Center, VPos::Top)))
        .y_label_style(font)
        .draw()?;
    let moved = |(at, value): &(f64, f64)| (at - start, *value);
    for line in lines {
        let color = COLORS[line.color % COLORS.len()];
        chart.draw_series(LineSeries::new(line.points.iter().map(moved), color.stroke_width(2)))?;
        let marked = line.marks.iter().map(|at| TriangleMarker::new(moved(at), 5, COLORS[1].filled()));
        chart.draw_series(marked)?;
    }
    let (x, y) = chart.plotting_area().get_pixel_range();
    root.present()?;
    Ok(Frame { x: (x.start, x.end), bottom: y.end, from: start, to: start + shown })
}

/// A time, as precise as the time that is shown asks for.
fn label(at: f64, shown: f64, zone: &TimeZone) -> String {
    let wall_ns = nanoseconds(at);
    match shown {
        ..10.0 => plain::time_ms(wall_ns, zone).get(..10).unwrap_or_default().to_owned(),
        ..600.0 => plain::time(wall_ns, zone),
        // Month, day, hour and minute.
        _ => plain::date_and_time(wall_ns, zone).get(5..16).unwrap_or_default().to_owned(),
    }
}

/// Seconds as nanoseconds.
#[expect(clippy::cast_possible_truncation, reason = "saturates")]
pub(super) fn nanoseconds(seconds: f64) -> i128 {
    (seconds * 1e9) as i128
}

/// A number in few characters.
fn short(value: f64) -> String {
    match value {
        ..0.05 => "0".into(),
        ..10.0 => format!("{value:.1}"),
        ..1e4 => format!("{value:.0}"),
        ..1e6 => format!("{:.0}k", value / 1e3),
        ..1e9 => format!("{:.1}M", value / 1e6),
        _ => format!("{value:.1e}"),
    }
}
