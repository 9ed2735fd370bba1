//! Installs packages the agent's way, without a plan around it: for the benchmark and the tests of `src/install/`.
//!
//! ```text
//! install-packages [--root DIR] [--method pipeline|originals|apt] [--memory MIB] [--recommends] [--no-prefetch]
//!                  PACKAGE… [--then PACKAGE…]…
//! ```
//!
//! `--then` begins another installation, as of a later step: what it needs is fetched while the one before it is at work,
//! unless `--no-prefetch` is given. Prints one JSON line for each installation on standard output: how it was done, bytes
//! and seconds. Exits 1 where one failed.

use std::process::ExitCode;

use gpu_bootstrap::host::Host;
use gpu_bootstrap::host::apt::Request;
use gpu_bootstrap::install::ahead::Wish;
use gpu_bootstrap::install::{Installer, Options, Rung, stand_in};

fn main() -> ExitCode {
    stand_in::play_if_called();
    let mut root = "/".to_owned();
    let mut options = Options::default();
    let (mut recommends, mut steps) = (false, vec![Request::default()]);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_default();
        match arg.as_str() {
            "--root" => root = value(),
            "--method" => {
                options.most = match value().as_str() {
                    "pipeline" => Rung::Pipeline,
                    "originals" => Rung::Originals,
                    "apt" => Rung::Apt,
                    other => return usage(&format!("no method is called {other}")),
                }
            }
            "--memory" => match value().parse::<u64>() {
                Ok(mebibytes) => options.memory = Some(mebibytes << 20),
                Err(e) => return usage(&format!("--memory: {e}")),
            },
            "--recommends" => recommends = true,
            "--no-prefetch" => options.prefetch = false,
            "--then" => steps.push(Request::default()),
            flag if flag.starts_with('-') => return usage(&format!("there is no {flag}")),
            package => {
                if let Some(step) = steps.last_mut() {
                    step.packages.push(package.to_owned());
                }
            }
        }
    }
    if steps.iter().any(|step| step.packages.is_empty()) {
        return usage("no package is named");
    }
    for step in &mut steps {
        step.recommends = recommends;
    }
    install(root, options, &steps)
}

fn usage(why: &str) -> ExitCode {
    eprintln!(
        "{why}\nusage: install-packages [--root DIR] [--method pipeline|originals|apt] [--memory MIB] [--recommends] [--no-prefetch] PACKAGE… [--then PACKAGE…]…"
    );
    ExitCode::from(2)
}

fn install(root: String, options: Options, steps: &[Request]) -> ExitCode {
    let host = Host::new(root.into()).with_notices(|text| eprintln!("{text}"));
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("cannot start the event loop: {e}");
            return ExitCode::FAILURE;
        }
    };
    for (number, request) in steps.iter().enumerate() {
        let later = steps[number + 1..].iter().map(|step| Wish { request: step.clone(), ..Wish::default() });
        host.ahead().expect(later.collect());
        match runtime.block_on(Installer::new(&host).with(options).install(request)) {
            Ok(report) => println!("{}", serde_json::to_string(&report).unwrap_or_default()),
            Err(error) => {
                eprintln!("{error} [{}]", error.code());
                error.causes().iter().for_each(|cause| eprintln!("  because: {cause}"));
                error.hint().iter().for_each(|hint| eprintln!("  hint: {hint}"));
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
