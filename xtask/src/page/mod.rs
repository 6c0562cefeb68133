//! `cargo xtask page`: the page of `ctwatch report`, opened in a headless Chromium.
//!
//! One page is made of a flood that is recorded in a guest just then. The other is made of the recording beside this
//! file: it is that of a real flood in a guest, where the machine, a network namespace and a
//! process had names that would be mark-up and scripts if a page let them.

mod browser;
mod flood;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use self::browser::{Browser, Window};
use crate::step::{self, Step, say};
use crate::{build, packages, paths};

/// Of version 1 of the format. It stays so: what was recorded then must be read.
const RECORDING: &str = "xtask/src/page/flood.ctw";
const LOOK: &str = include_str!("look.js");
/// A phone and a screen.
const WIDTHS: [u32; 2] = [390, 1400];

/// A page that is broken in one way, and what must be said against it. A check that finds none of them checks nothing.
struct Broken {
    what: &'static str,
    /// Texts of the page, and what stands there instead.
    change: &'static [(&'static str, &'static str)],
    complaint: &'static str,
}

const POLICY: &str = "<meta http-equiv=Content-Security-Policy";
const NO_POLICY: &str = "<meta name=none";

const BROKEN: [Broken; 10] = [
    Broken {
        what: "a script that the policy stops",
        change: &[("</main>", "</main><script>1</script>")],
        complaint: "console: ",
    },
    Broken {
        what: "a script that runs",
        change: &[(POLICY, NO_POLICY), ("</main>", "</main><script>console.log(1)</script>")],
        complaint: "console: ",
    },
    Broken {
        what: "another script in the place of its own",
        change: &[("Filter rows", "Filter lines")],
        complaint: "console: ",
    },
    Broken {
        what: "a zoom that does nothing",
        change: &[(POLICY, NO_POLICY), ("shape.setAttribute('points'", "shape.getAttribute('points'")],
        complaint: "zooming in changes nothing",
    },
    Broken {
        what: "a filter that does nothing",
        change: &[(POLICY, NO_POLICY), ("row.hidden = ", "row.seen = ")],
        complaint: "a filter shows ",
    },
    Broken {
        what: "a picture from elsewhere",
        change: &[(POLICY, NO_POLICY), ("</main>", "</main><img src=elsewhere.png>")],
        complaint: "a request to ",
    },
    Broken { what: "charts without lines", change: &[("<polyline", "<metadata")], complaint: "is not drawn" },
    Broken {
        what: "a wide element",
        change: &[("</main>", "</main><div style=\"width:1500px\">wide</div>")],
        complaint: "px wide",
    },
    Broken {
        what: "labels in the colour of the background",
        change: &[("svg text{fill:var(--ink)}", "svg text{fill:var(--back)}")],
        complaint: "contrast of ",
    },
    Broken {
        what: "labels that cover each other",
        change: &[("svg text{font-size:24px}", "svg text{font-size:48px}")],
        complaint: " covers ",
    },
];

/// Makes both pages, opens them in every way, and then the broken ones.
pub(crate) fn run() -> Result<()> {
    packages::ensure_programs("the check of the page", &[("chromium", "chromium")])?;
    let ctwatch = build::debug()?;
    let scratch = paths::target("page");
    fs::create_dir_all(&scratch)?;
    let step = Step::begin("a flood in a guest, recorded for the page");
    let recorded = flood::record(&scratch)?;
    step.end();
    let step = Step::begin("the pages in Chromium");
    let program = paths::program("chromium").context("chromium is not there")?;
    let mut browser = Browser::start(&program, &scratch)?;
    let html = check(&mut browser, &ctwatch, &recorded, &scratch, "guest")?;
    for told in ["CRITICAL", "table-full", "live entries evicted", "new flows refused"] {
        if !html.contains(told) {
            bail!("the page of the flood in the guest does not have `{told}`");
        }
    }
    let html = check(&mut browser, &ctwatch, &paths::root().join(RECORDING), &scratch, "page")?;
    for broken in &BROKEN {
        is_found(&mut browser, broken, &html, &scratch)?;
    }
    say(format!("pictures of the pages are in {}", scratch.display()));
    step.end();
    Ok(())
}

/// Makes the page of a recording, and opens it in every way.
fn check(
    browser: &mut Browser,
    ctwatch: &Path,
    recording: &Path,
    scratch: &Path,
    name: &str,
) -> Result<String> {
    let page = scratch.join(format!("{name}.html"));
    // Times as they are on any machine.
    step::run(Command::new(ctwatch).arg("report").arg(recording).arg("-o").arg(&page).env("TZ", "UTC"))?;
    let html = fs::read_to_string(&page)?;
    let mut wrong = Vec::new();
    let mut windows = vec![("without-script", Window { width: WIDTHS[0], dark: false, script: false })];
    for width in WIDTHS {
        for (scheme, dark) in [("light", false), ("dark", true)] {
            windows.push((scheme, Window { width, dark, script: true }));
        }
    }
    for (how, window) in windows {
        let picture = scratch.join(format!("{name}-{}-{how}.png", window.width));
        let found = look(browser, &page, window, &picture)?;
        wrong.extend(found.into_iter().map(|found| format!("{} px, {how}: {found}", window.width)));
    }
    if !wrong.is_empty() {
        bail!("{}:\n{}", page.display(), wrong.join("\n"));
    }
    Ok(html)
}

fn look(browser: &mut Browser, page: &Path, window: Window, picture: &Path) -> Result<Vec<String>> {
    browser.look(page, window, &format!("{}({}, {})", LOOK.trim_end(), window.width, window.script), picture)
}

/// The check finds what is wrong with this one.
fn is_found(browser: &mut Browser, broken: &Broken, html: &str, scratch: &Path) -> Result<()> {
    let mut text = html.to_owned();
    for (there, instead) in broken.change {
        if !text.contains(there) {
            bail!("the page has no `{there}` to break");
        }
        text = text.replace(there, instead);
    }
    let page: PathBuf = scratch.join("broken.html");
    fs::write(&page, text)?;
    let window = Window { width: WIDTHS[0], dark: false, script: true };
    let found = look(browser, &page, window, &scratch.join("broken.png"))?;
    if !found.iter().any(|found| found.contains(broken.complaint)) {
        bail!("nothing was said against a page with {}; only: {found:?}", broken.what);
    }
    Ok(())
}
