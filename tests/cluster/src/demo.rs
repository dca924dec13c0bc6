//! The main job on real input, in seven steps, as `cargo xtask demo` shows it.
//!
//! Everything a user would do is done with the `foil` command line and printed with its real
//! output; each expectation is a line that begins with `ok` or ends the demo.
//! Called by `bin/demo.rs`. The same expectations, finer, are the cases in `case`.

pub mod change;
pub mod connect;
pub mod crash;
pub mod deploy;
pub mod inspect;
pub mod remove;
pub mod show;

pub use show::Show;

/// Runs all steps. A failed check is a panic; the cluster's guard cleans up.
pub fn run() {
    let mut show = Show::default();
    let mut cluster = deploy::start(&mut show);
    deploy::images(&mut show, &mut cluster);
    deploy::apply(&mut show, &cluster);
    inspect::run(&mut show, &cluster);
    connect::run(&mut show, &cluster);
    change::run(&mut show, &cluster);
    crash::run(&mut show, &mut cluster);
    remove::run(&mut show, cluster);
    show.end();
}
