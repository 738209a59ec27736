//! The binary: see [`dezky_server::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    dezky_server::cli::main()
}
