//! Line charts over a number of sessions or over time, as SVG. A few dozen lines of text need no plotting library.

use std::collections::BTreeMap;
use std::fmt::Write;

/// The points of each line, with its name.
pub(crate) type Series = BTreeMap<String, Vec<(f64, f64)>>;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
/// Margin for texts around a chart.
const MARGIN: f64 = 48.0;
const COLOURS: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#555555", "#56b4e9"];

/// A chart.
#[derive(Debug, Clone)]
pub(crate) struct Chart {
    title: String,
    series: Series,
    /// Vertical lines: where, and what happened there.
    marks: Vec<(f64, String)>,
}

impl Chart {
    /// A chart without marks.
    pub(crate) fn new(title: impl Into<String>, series: Series) -> Self {
        Self { title: title.into(), series, marks: Vec::new() }
    }

    /// Adds vertical lines, each with a text.
    pub(crate) fn with_marks(mut self, marks: Vec<(f64, String)>) -> Self {
        self.marks = marks;
        self
    }
}

/// A text as XML writes it.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Draws charts one below the other, each with its title.
pub(crate) fn svg(charts: &[Chart]) -> String {
    let height = HEIGHT * charts.len() as f64;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (number, chart) in charts.iter().enumerate() {
        let _ = writeln!(text, "<g transform=\"translate(0 {})\">", HEIGHT * number as f64);
        draw(&mut text, chart);
        text += "</g>\n";
    }
    text + "</svg>\n"
}

fn draw(text: &mut String, Chart { title, series, marks }: &Chart) {
    let title = escape(title);
    let points = || series.values().flatten();
    let most = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(0.0, f64::max).max(1e-9);
    let (right, top) = (most(|point| point.0), most(|point| point.1));
    let x = |value: f64| MARGIN + value / right * (WIDTH - 4.0 * MARGIN);
    let y = |value: f64| HEIGHT - MARGIN - value / top * (HEIGHT - 2.0 * MARGIN);
    let _ = writeln!(text, "<text x=\"{MARGIN}\" y=\"24\" font-size=\"14\">{title}</text>");
    let _ = writeln!(
        text,
        "<path d=\"M{0} {1}V{2}H{3}\" fill=\"none\" stroke=\"black\"/>",
        x(0.0),
        y(top),
        y(0.0),
        x(right)
    );
    for part in [0.0, 0.5, 1.0] {
        let (sessions, value) = (right * part, top * part);
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{sessions:.0}</text>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{value:.2}</text>",
            x(sessions),
            y(0.0) + 18.0,
            x(0.0) - 4.0,
            y(value) + 4.0
        );
    }
    for (at, what) in marks.iter().filter(|(at, _)| (0.0..=right).contains(at)) {
        let _ = writeln!(
            text,
            "<path d=\"M{0} {1}V{2}\" stroke=\"#999999\" stroke-dasharray=\"4 4\"/>\
             <text x=\"{0}\" y=\"{3}\" font-size=\"9\" text-anchor=\"middle\" fill=\"#555555\">{4}</text>",
            x(*at),
            y(top),
            y(0.0),
            y(top) - 4.0,
            escape(what)
        );
    }
    for ((name, points), (number, colour)) in series.iter().zip(COLOURS.iter().cycle().enumerate())
    {
        let name = escape(name);
        let line: Vec<String> = points
            .iter()
            .map(|(sessions, value)| format!("{:.1},{:.1}", x(*sessions), y(*value)))
            .collect();
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{}\" y=\"{}\" fill=\"{colour}\">{name}</text>",
            line.join(" "),
            WIDTH - 2.8 * MARGIN,
            MARGIN + 16.0 * number as f64
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_within_the_chart() {
        let series = Series::from([
            ("a".into(), vec![(10.0, 1.0), (400.0, 3.0)]),
            ("b".into(), vec![(10.0, 2.0)]),
        ]);
        let two = Chart::new("two", series.clone()).with_marks(vec![(20.0, "killed".to_owned())]);
        let text = svg(&[Chart::new("one", series), two]);
        assert_eq!(text.matches("killed").count(), 1);
        assert_eq!(text.matches("<polyline").count(), 4);
        assert_eq!(text.matches("<g ").count(), text.matches("</g>").count());
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        assert!(svg(&[Chart::new("nothing", Series::new())]).ends_with("</svg>\n"));
    }

    #[test]
    fn names_cannot_break_the_document() {
        let series = Series::from([("<a> & b".into(), vec![(1.0, 2.0)])]);
        let text = svg(&[Chart::new("1 < 2", series).with_marks(vec![(0.5, "a<b".into())])]);
        assert!(text.contains("&lt;a&gt; &amp; b") && text.contains("1 &lt; 2"), "{text}");
        assert!(text.contains("a&lt;b") && !text.contains("a<b"), "{text}");
    }
}
