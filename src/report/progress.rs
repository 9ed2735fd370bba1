//! Progress bars with rate and remaining time, on a terminal only.

use std::io::Write;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::event::{Progress, Unit};

/// One bar per piece of long work that is going on.
pub struct ProgressBars {
    all: MultiProgress,
    open: Vec<(String, ProgressBar)>,
}

impl Default for ProgressBars {
    fn default() -> Self {
        Self::new()
    }
}

impl ProgressBars {
    /// No bars yet.
    pub fn new() -> Self {
        Self { all: MultiProgress::new(), open: Vec::new() }
    }

    /// Prints a line above the bars.
    pub fn print(&self, text: &str) {
        // Not the bars' own println: that pads lines instead of ending them, and writes where the bars are, on
        // standard error. A terminal that went away is not the run's failure.
        self.all.suspend(|| drop(writeln!(std::io::stdout(), "{text}")));
    }

    /// Moves the bar of `progress.what`, making it if it is new.
    pub fn show(&mut self, progress: &Progress) {
        let known = self.open.iter().find(|(what, _)| *what == progress.what).map(|(_, bar)| bar.clone());
        let bar = known.unwrap_or_else(|| {
            let bar = self.all.add(ProgressBar::new(progress.total.unwrap_or(0)));
            bar.set_style(style(progress));
            bar.set_message(progress.what.clone());
            self.open.push((progress.what.clone(), bar.clone()));
            bar
        });
        if let Some(total) = progress.total {
            bar.set_length(total);
        }
        bar.set_position(progress.done);
        if progress.total == Some(progress.done) {
            bar.finish_and_clear();
            self.open.retain(|(what, _)| *what != progress.what);
        }
    }

    /// Removes every bar.
    pub fn clear(&mut self) {
        for (_, bar) in self.open.drain(..) {
            bar.finish_and_clear();
        }
    }
}

fn style(progress: &Progress) -> ProgressStyle {
    let template = match (progress.unit, progress.total) {
        (Unit::Bytes, Some(_)) => "{msg:40!} [{bar:24}] {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
        (Unit::Bytes, None) => "{msg:40!} {spinner} {bytes} {bytes_per_sec}",
        (Unit::Items, Some(_)) => "{msg:40!} [{bar:24}] {pos}/{len} {eta} left",
        (Unit::Items, None) => "{msg:40!} {spinner} {pos}",
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
