//! `agent`: the jail when asked for it, before any thread or runtime is started.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|command| command == "jail") {
        return agent::jail::main(args);
    }
    eprintln!("usage: agent jail --dir DIR");
    ExitCode::from(2)
}
