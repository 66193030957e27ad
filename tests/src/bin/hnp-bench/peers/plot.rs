//! The ratios as a picture: bars in SVG, written by hand, because nothing more is needed.

use std::fmt::Write as _;

use super::proxies::Kind;
use super::report::{Aim, HNP, OWN_TLS, Report, Row};

const LEFT: f64 = 390.0;
/// As long is the best of the others.
const ONE: f64 = 150.0;
/// Longer bars are cut, with their number beside them.
const LONGEST: f64 = 3.0;
const BAR: f64 = 13.0;
const COLOURS: [(&str, &str); 5] = [
    ("HAProxy", "#8da0cb"),
    ("nginx", "#66c2a5"),
    ("stunnel", "#bbbbbb"),
    (OWN_TLS, "#e5c494"),
    (HNP, "#d6604d"),
];

/// One bar a program and figure, in parts of the best of the others, and a mark where the aim is.
pub(super) fn svg(report: &Report) -> String {
    let mut body = String::new();
    let mut y = 64.0;
    for row in &report.rows {
        let kind = if row.kind == Kind::Http { "HTTP" } else { "opaque" };
        text(&mut body, 8.0, y + BAR, &format!("{kind}: {}", row.name()));
        let top = y;
        for column in &row.columns {
            let colour = COLOURS.iter().find(|(name, _)| *name == column.name).map_or("#000", |(_, c)| c);
            let width = column.ratio.clamp(0.0, LONGEST) * ONE;
            let _ = writeln!(
                body,
                "<rect x='{LEFT}' y='{y}' width='{width:.1}' height='{}' fill='{colour}'/>",
                BAR - 2.0
            );
            let words = format!("{} {:.2} (x{:.2})", column.name, column.median, column.ratio);
            text(&mut body, LEFT + width + 6.0, y + BAR - 3.0, &words);
            y += BAR;
        }
        if let Some(at) = aim(row) {
            let x = LEFT + at.clamp(0.0, LONGEST) * ONE;
            let _ = writeln!(
                body,
                "<line x1='{x:.1}' x2='{x:.1}' y1='{top}' y2='{y}' stroke='#000' stroke-dasharray='3 2'/>"
            );
        }
        y += 9.0;
    }
    let mut head = String::new();
    text(&mut head, 8.0, 20.0, &format!("{}; {} rounds", report.machine, report.rounds));
    let explained = "Parts of the best of the others, less is better; a dashed line is the aim of hnp";
    text(&mut head, 8.0, 40.0, explained);
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='1060' height='{y:.0}' font-family='sans-serif' \
         font-size='12'>\n<rect width='100%' height='100%' fill='#fff'/>\n{head}{body}</svg>\n"
    )
}

/// Where it lies among the bars.
fn aim(row: &Row) -> Option<f64> {
    let best = row.columns.iter().find(|column| column.name == row.best)?.median;
    row.aim.map(|aim| match aim {
        Aim::Ratio(most) => most,
        Aim::AtMost(most) => most / best,
    })
}

fn text(body: &mut String, x: f64, y: f64, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(body, "<text x='{x:.1}' y='{y:.1}'>{words}</text>");
}
