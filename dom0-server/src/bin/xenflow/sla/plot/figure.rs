//! Lines over time as SVG, by hand: axes with units, a legend, contracts as dashed lines. On no ground of its own, in colors
//! that can be seen on white and on black.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use dom0_server::clock::utc_of_ms;
use dom0_server::db::contract::bits;

/// Of networks: told apart also by those who see few colors, as neighbors in this order differ in lightness.
pub(super) const COLORS: [&str; 8] =
    ["#0f83d8", "#e8871e", "#1a9e6c", "#d1435b", "#8e6fd0", "#a8833a", "#cf6fae", "#2aa7b8"];
/// Of axes and words.
const INK: &str = "#808890";

/// Sizes in pixels: of the figure, and of a panel's lines from its upper left corner on.
const WIDTH: f64 = 900.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 880.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 270.0;
/// From the lower end of the lines to the first line of the legend, and from each to the next.
const LEGEND: f64 = 52.0;
const LINE: f64 = 20.0;
/// Of a letter.
const LETTER: f64 = 7.0;
const SWATCH: f64 = 24.0;

/// The lines of an uplink.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Panel {
    pub(super) port: String,
    pub(super) series: Vec<Series>,
}

/// A network's line.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Series {
    pub(super) name: String,
    /// What it is promised, in bit/s; 0: nothing.
    pub(super) min_bps: u64,
    /// What it had, in bit/s, by milliseconds since the Unix epoch.
    pub(super) points: BTreeMap<u64, u64>,
}

/// What the axes span. The times are those of all panels.
#[derive(Debug, Clone, Copy)]
struct Axes {
    from_ms: u64,
    to_ms: u64,
    top_bps: u64,
    step_bps: u64,
}

#[expect(clippy::cast_precision_loss, reason = "pixels")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl Axes {
    fn x(&self, at_ms: u64) -> f64 {
        let at = at_ms.clamp(self.from_ms, self.to_ms) - self.from_ms;
        LEFT + (RIGHT - LEFT) * ratio(at, self.to_ms - self.from_ms)
    }

    fn y(&self, bps: u64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * ratio(bps.min(self.top_bps), self.top_bps)
    }
}

/// The least of 1, 2, 5, 10, 20, … of which six are enough.
fn step(most: u64) -> u64 {
    let mut ten: u64 = 1;
    loop {
        for factor in [1, 2, 5] {
            let step = ten.saturating_mul(factor);
            if step.saturating_mul(6) >= most {
                return step;
            }
        }
        ten = ten.saturating_mul(10);
    }
}

/// Seconds between marks of the time: at most eight of them.
fn time_step_ms(span_ms: u64) -> u64 {
    let steps = [5, 10, 30, 60, 300, 600, 1800, 3600].map(|seconds: u64| seconds * 1000);
    steps.into_iter().find(|step| span_ms / step <= 8).unwrap_or(span_ms / 8 + 1)
}

/// Text that stands in XML.
fn escaped(text: &str) -> String {
    let mut all = String::new();
    for letter in text.chars() {
        match letter {
            '&' => all += "&amp;",
            '<' => all += "&lt;",
            '>' => all += "&gt;",
            '"' => all += "&quot;",
            '\'' => all += "&apos;",
            control if control.is_control() => all.push('\u{fffd}'),
            other => all.push(other),
        }
    }
    all
}

/// A network has its color in all panels.
fn colors(panels: &[Panel]) -> BTreeMap<&str, &'static str> {
    let names = panels.iter().flat_map(|panel| &panel.series).map(|series| series.name.as_str());
    let names: BTreeSet<_> = names.collect();
    names.into_iter().zip(COLORS.into_iter().cycle()).collect()
}

/// The figure. A point is of `step_ms` from its time on.
pub(super) fn svg(panels: &[Panel], step_ms: u64) -> String {
    let times =
        || panels.iter().flat_map(|panel| &panel.series).flat_map(|series| series.points.keys().copied());
    let from_ms = times().min().unwrap_or_default();
    let to_ms = times().max().unwrap_or_default().saturating_add(step_ms).max(from_ms + 60_000);
    let colors = colors(panels);
    let mut body = String::new();
    let mut y = 0.0;
    for panel in panels {
        let most =
            panel.series.iter().flat_map(|series| series.points.values().copied().chain([series.min_bps]));
        let step_bps = step(most.max().unwrap_or_default().max(1000));
        let most =
            panel.series.iter().flat_map(|series| series.points.values().copied().chain([series.min_bps]));
        let top_bps = most.max().unwrap_or_default().max(1).div_ceil(step_bps) * step_bps;
        let axes = Axes { from_ms, to_ms, top_bps, step_bps };
        let (drawn, height) = draw(panel, axes, step_ms, &colors);
        // Writing to a string cannot fail.
        let _ = write!(body, "<g transform=\"translate(0 {y:.0})\">\n{drawn}</g>\n");
        y += height;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH:.0}\" height=\"{y:.0}\" viewBox=\"0 0 {WIDTH:.0} {y:.0}\" \
         role=\"img\" font-family=\"sans-serif\" font-size=\"12\" fill=\"{INK}\">\n<title>Bandwidth of networks on the uplinks \
         of a node, and what they are promised</title>\n{body}</svg>\n"
    )
}

/// One panel, and its height.
fn draw(panel: &Panel, axes: Axes, step_ms: u64, colors: &BTreeMap<&str, &str>) -> (String, f64) {
    let color = |series: &Series| colors.get(series.name.as_str()).copied().unwrap_or(INK);
    let mut out = String::new();
    let port = escaped(&panel.port);
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"24\" font-size=\"14\" font-weight=\"bold\">uplink {port}</text>"
    );
    out += &scales(axes);
    for series in &panel.series {
        let color = color(series);
        if series.min_bps > 0 {
            let y = axes.y(series.min_bps);
            let _ = writeln!(
                out,
                "<line class=\"contract\" x1=\"{LEFT:.1}\" y1=\"{y:.1}\" x2=\"{RIGHT:.1}\" y2=\"{y:.1}\" stroke=\"{color}\" \
                 stroke-width=\"1.5\" stroke-dasharray=\"7 5\"/>"
            );
        }
    }
    for series in &panel.series {
        let color = color(series);
        for points in pieces(series, step_ms) {
            let points = points.iter().map(|(at_ms, bps)| {
                format!("{:.1},{:.1}", axes.x(at_ms.saturating_add(step_ms / 2)), axes.y(*bps))
            });
            let mut points: Vec<_> = points.collect();
            if let [only] = &points[..] {
                // A line of one point has no length; its round ends show.
                points.push(only.clone());
            }
            let _ = writeln!(
                out,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\" stroke-linejoin=\"round\" \
                 stroke-linecap=\"round\"/>",
                points.join(" ")
            );
        }
    }
    if panel.series.iter().all(|series| series.points.is_empty()) {
        let (x, y) = (f64::midpoint(LEFT, RIGHT), f64::midpoint(TOP, BOTTOM));
        let _ = writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">nothing yet: there is a point for every {} s</text>",
            step_ms / 1000
        );
    }
    let (legend, height) = legend(panel, color);
    (out + &legend, height)
}

/// The axes, their marks and units.
fn scales(axes: Axes) -> String {
    let mut out = String::new();
    let units =
        [(1_000_000_000_000, "Tbit/s"), (1_000_000_000, "Gbit/s"), (1_000_000, "Mbit/s"), (1_000, "kbit/s")];
    let (factor, unit) =
        units.into_iter().find(|(factor, _)| axes.top_bps >= *factor).unwrap_or((1, "bit/s"));
    for bps in (0..=axes.top_bps / axes.step_bps).map(|mark| mark * axes.step_bps) {
        let y = axes.y(bps);
        let opacity = if bps == 0 { "1" } else { "0.3" };
        let number = match (bps / factor, bps % factor) {
            (whole, 0) => whole.to_string(),
            (whole, rest) => format!("{whole}.{}", rest * 10 / factor),
        };
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT:.1}\" y1=\"{y:.1}\" x2=\"{RIGHT:.1}\" y2=\"{y:.1}\" stroke=\"{INK}\" stroke-opacity=\"{opacity}\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{number}</text>",
            LEFT - 8.0,
            y + 4.0
        );
    }
    let _ = writeln!(
        out,
        "<line x1=\"{LEFT:.1}\" y1=\"{TOP:.1}\" x2=\"{LEFT:.1}\" y2=\"{BOTTOM:.1}\" stroke=\"{INK}\"/>\n\
         <text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">{unit}</text>",
        f64::midpoint(TOP, BOTTOM)
    );
    let step = time_step_ms(axes.to_ms - axes.from_ms);
    // The part of "2026-11-22T08:22:01Z" that changes from mark to mark.
    let letters = if step < 60_000 { 11..19 } else { 11..16 };
    let first = axes.from_ms.div_ceil(step);
    for at_ms in (first..=axes.to_ms / step).map(|mark| mark * step) {
        let time = utc_of_ms(at_ms).unwrap_or_default();
        let _ = writeln!(
            out,
            "<line x1=\"{0:.1}\" y1=\"{BOTTOM:.1}\" x2=\"{0:.1}\" y2=\"{1:.1}\" stroke=\"{INK}\"/>\n\
             <text x=\"{0:.1}\" y=\"{2:.1}\" text-anchor=\"middle\">{3}</text>",
            axes.x(at_ms),
            BOTTOM + 5.0,
            BOTTOM + 20.0,
            time.get(letters.clone()).unwrap_or_default()
        );
    }
    let day = utc_of_ms(axes.to_ms).unwrap_or_default();
    let day = day.get(..10).unwrap_or_default();
    let y = TOP - 16.0;
    let _ = writeln!(out, "<text x=\"{RIGHT:.1}\" y=\"{y:.1}\" text-anchor=\"end\">{day}, UTC</text>");
    out
}

/// Points that stand beside each other: where some are missing, there is no line.
fn pieces(series: &Series, step_ms: u64) -> Vec<Vec<(u64, u64)>> {
    let mut pieces: Vec<Vec<(u64, u64)>> = Vec::new();
    for (&at_ms, &bps) in &series.points {
        let last = pieces.last_mut().filter(|piece| {
            piece.last().is_some_and(|(before, _)| at_ms - before <= step_ms.saturating_mul(2))
        });
        match last {
            Some(piece) => piece.push((at_ms, bps)),
            None => pieces.push(vec![(at_ms, bps)]),
        }
    }
    pieces
}

/// What each line is, in as many rows as it takes; and the height of the panel with it.
fn legend<'a>(panel: &Panel, color: impl Fn(&Series) -> &'a str) -> (String, f64) {
    let mut out = String::new();
    let (mut x, mut y) = (LEFT, BOTTOM + LEGEND);
    for series in &panel.series {
        let color = color(series);
        let words = match series.min_bps {
            0 => format!("{}, promised nothing", series.name),
            min => format!("{}, promised {}", series.name, bits(min)),
        };
        #[expect(clippy::cast_precision_loss, reason = "letters of a name")]
        let wide = SWATCH + 8.0 + words.chars().count() as f64 * LETTER + 24.0;
        if x > LEFT && x + wide > RIGHT {
            (x, y) = (LEFT, y + LINE);
        }
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{0:.1}\" x2=\"{1:.1}\" y2=\"{0:.1}\" stroke=\"{color}\" stroke-width=\"2\"/>\n\
             <text x=\"{2:.1}\" y=\"{y:.1}\">{3}</text>",
            y - 4.0,
            x + SWATCH,
            x + SWATCH + 8.0,
            escaped(&words)
        );
        x += wide;
    }
    let words = "dashed: what is promised";
    if panel.series.iter().any(|series| series.min_bps > 0) {
        y += LINE;
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT:.1}\" y1=\"{0:.1}\" x2=\"{1:.1}\" y2=\"{0:.1}\" stroke=\"{INK}\" stroke-width=\"1.5\" \
             stroke-dasharray=\"7 5\"/>\n<text x=\"{2:.1}\" y=\"{y:.1}\">{words}</text>",
            y - 4.0,
            LEFT + SWATCH,
            LEFT + SWATCH + 8.0
        );
    }
    (out, y + LINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MBIT: u64 = 1_000_000;
    const BEGIN: u64 = 1_795_335_300_000;

    fn series(name: &str, min: u64, points: impl IntoIterator<Item = (u64, u64)>) -> Series {
        let points = points.into_iter().map(|(at, mbit)| (BEGIN + at * 5_000, mbit * MBIT)).collect();
        Series { name: name.into(), min_bps: min * MBIT, points }
    }

    /// Every element with its attributes, in order; panics where the text is not well-formed XML.
    fn elements(svg: &str) -> Vec<(String, BTreeMap<String, String>)> {
        let (mut open, mut all, mut rest) = (Vec::new(), Vec::new(), svg);
        while let Some(at) = rest.find('<') {
            let (text, tag) = rest.split_at(at);
            assert!(!text.contains('>') && entities(text), "{text}");
            let (tag, behind) = tag[1..].split_once('>').expect("a tag that ends");
            rest = behind;
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name));
                continue;
            }
            let (tag, is_empty) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
            let (name, mut words) = tag.split_once(' ').unwrap_or((tag, ""));
            let mut attributes = BTreeMap::new();
            while !words.is_empty() {
                let (key, value) = words.split_once("=\"").expect("a value in quotes");
                let (value, more) = value.split_once('"').expect("its end");
                assert!(entities(value), "{value}");
                assert!(attributes.insert(key.trim().to_owned(), value.to_owned()).is_none(), "{key} twice");
                words = more.trim_start();
            }
            all.push((name.to_owned(), attributes));
            if !is_empty {
                open.push(name.to_owned());
            }
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "{open:?}");
        all
    }

    fn entities(text: &str) -> bool {
        let known = ["amp;", "lt;", "gt;", "quot;", "apos;"];
        text.split('&').skip(1).all(|behind| known.iter().any(|entity| behind.starts_with(entity)))
    }

    /// The points of all lines.
    fn points(svg: &str) -> Vec<Vec<(f64, f64)>> {
        let of = |text: &String| {
            let pair = |text: &str| {
                let (x, y) = text.split_once(',').unwrap();
                (x.parse().unwrap(), y.parse().unwrap())
            };
            text.split(' ').map(pair).collect()
        };
        let all = elements(svg);
        all.iter()
            .filter(|(name, _)| name == "polyline")
            .map(|(_, attributes)| of(&attributes["points"]))
            .collect()
    }

    #[test]
    fn a_figure_is_well_formed_and_its_points_are_within_the_axes() {
        let red = series("red", 20, (0..720).map(|at| (at, 20 + at % 7)));
        let blue = series("blue", 40, (300..720).map(|at| (at, 39)));
        let panels = [
            Panel { port: "a<b&\"c'>".into(), series: vec![red.clone(), blue] },
            Panel { port: "eth1".into(), series: vec![red] },
        ];
        let svg = svg(&panels, 5_000);
        let lines = points(&svg);
        assert_eq!(lines.iter().map(Vec::len).collect::<Vec<_>>(), [720, 420, 720]);
        for (x, y) in lines.iter().flatten() {
            assert!((LEFT..=RIGHT).contains(x) && (TOP..=BOTTOM).contains(y), "{x} {y}");
        }
        // Time goes to the right, bandwidth up.
        assert!(lines[0][0].0 < LEFT + 2.0 && lines[0][719].0 > RIGHT - 2.0);
        assert!(lines[0][0].1 > lines[0][6].1, "20 is lower than 26");
        let all = elements(&svg);
        let contracts: Vec<_> =
            all.iter().filter(|(_, it)| it.get("class").is_some_and(|it| it == "contract")).collect();
        assert_eq!(contracts.len(), 3);
        // What is promised stands where what is had stands.
        let blue = contracts[1].1["y1"].parse::<f64>().unwrap();
        let color = |at: usize| {
            all.iter().filter(|(name, _)| name == "polyline").nth(at).map(|(_, it)| &it["stroke"])
        };
        assert!(color(0) == color(2) && color(0) != color(1), "red is red on both");
        assert!((lines[1][0].1 - blue - (BOTTOM - TOP) / 40.0).abs() < 0.11, "39 of 40: {blue}");
        for words in [
            "uplink a&lt;b&amp;&quot;c&apos;&gt;",
            "red, promised 20mbit",
            "blue, promised 40mbit",
            ">Mbit/s<",
            "UTC",
        ] {
            assert!(svg.contains(words), "{words}");
        }
        assert_eq!(all[0].1["height"], "724", "two panels");
    }

    #[test]
    fn what_is_missing_is_no_line() {
        let red = series("red", 0, [(0, 1), (1, 2), (2, 3), (9, 4), (20, 5), (21, 6)]);
        let svg = svg(&[Panel { port: "eth0".into(), series: vec![red] }], 5_000);
        // The one in the middle is a dot.
        assert_eq!(points(&svg).iter().map(Vec::len).collect::<Vec<_>>(), [3, 2, 2]);
        assert!(!svg.contains("contract") && svg.contains("red, promised nothing"));
        let empty = self::svg(&[Panel { port: "eth0".into(), series: vec![series("red", 20, [])] }], 5_000);
        assert!(points(&empty).is_empty() && empty.contains("nothing yet: there is a point for every 5 s"));
        assert_eq!(elements(&self::svg(&[], 5_000)).len(), 2);
    }

    #[test]
    fn axes_have_round_marks() {
        for (most, wanted) in [
            (1, 1),
            (6, 1),
            (7, 2),
            (26, 5),
            (60, 10),
            (61, 20),
            (999, 200),
            (u64::MAX, 5_000_000_000_000_000_000),
        ] {
            assert_eq!(step(most), wanted, "{most}");
        }
        for (seconds, wanted) in [(60, 10), (240, 30), (600, 300), (3_600, 600), (36_000, 4_500)] {
            assert_eq!(time_step_ms(seconds * 1000) / 1000, wanted, "{seconds}");
        }
        // The greatest there is, and the least.
        let panel = |mbit| Panel { port: "eth0".into(), series: vec![series("red", 0, [(0, mbit), (1, 0)])] };
        for (mbit, unit) in [(1_000_000, ">Tbit/s<"), (2_500, ">Gbit/s<"), (0, "bit/s<")] {
            let svg = svg(&[panel(mbit)], 5_000);
            assert!(svg.contains(unit), "{mbit}");
            assert!(points(&svg).iter().flatten().all(|(_, y)| (TOP..=BOTTOM).contains(y)));
        }
    }

    #[test]
    fn many_names_take_more_rows_of_the_legend() {
        let long = "n".repeat(60);
        let many: Vec<_> = (0..8).map(|n| series(&format!("{long}{n}"), 1, [(0, 1)])).collect();
        let all = elements(&svg(&[Panel { port: "eth0".into(), series: many }], 5_000));
        assert_eq!(all[0].1["height"], "502");
        let xs = all
            .iter()
            .filter(|(name, _)| name == "text")
            .filter_map(|(_, it)| it.get("x")?.parse::<f64>().ok());
        assert!(xs.into_iter().all(|x| x <= RIGHT));
    }
}
