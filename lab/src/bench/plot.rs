//! Bars as plain SVG, so that a figure in the docs is what a command measured.

use std::fmt::Write as _;

/// A bar: its label, its value, and whether it is ours.
pub type Bar = (String, f64, bool);

const WIDTH: f64 = 720.0;
const LEFT: f64 = 250.0;
const ROW: f64 = 26.0;
const TOP: f64 = 44.0;

/// One bar a line, the longest as wide as there is room.
pub fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    let most = bars.iter().map(|(_, value, _)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let lines: f64 = bars.iter().map(|_| ROW).sum();
    let height = TOP + lines + 12.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\" role=\"img\">\n<title>{0}</title>\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"24\" font-size=\"15\" font-weight=\"bold\" fill=\"#222222\">{0}</text>\n",
        escaped(title)
    );
    let mut top = TOP;
    for (label, value, ours) in bars {
        let width = (WIDTH - LEFT - 110.0) * value / most;
        let colour = if *ours { "#2563a8" } else { "#a9b4c0" };
        let base = top + 15.0;
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{base:.0}\" text-anchor=\"end\" fill=\"#222222\">{}</text>\n\
             <rect x=\"{LEFT:.0}\" y=\"{top:.0}\" width=\"{width:.1}\" height=\"20\" fill=\"{colour}\"/>\n\
             <text x=\"{:.1}\" y=\"{base:.0}\" fill=\"#222222\">{} {}</text>",
            LEFT - 8.0,
            escaped(label),
            LEFT + width + 6.0,
            number(*value),
            escaped(unit)
        );
        top += ROW;
    }
    svg.push_str("</svg>\n");
    svg
}

fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_takes_the_room_and_text_is_escaped() {
        let svg = bars("a < b", "kpps", &[("x & y".into(), 50.0, true), ("z".into(), 100.0, false)]);
        assert!(svg.contains("a &lt; b") && svg.contains("x &amp; y") && svg.contains("100 kpps"));
        assert!(svg.contains("width=\"180.0\"") && svg.contains("width=\"360.0\""), "{svg}");
    }
}
