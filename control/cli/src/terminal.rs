//! The terminal in front of us: raw while a shell in a container has it.
//!
//! Only settings and sizes; bytes are moved by `command/exec.rs`.

use std::io::{self, IsTerminal as _};

use nix::sys::termios::{self, SetArg, Termios};

/// Raw mode, as long as this lives.
#[derive(Debug)]
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Lets every key through as it is, control-C included.
    pub(crate) fn enter() -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(error) = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.before) {
            eprintln!("restore the terminal: {error}; `reset` does it as well");
        }
    }
}

/// Is standard input a terminal?
pub(crate) fn is_input() -> bool {
    io::stdin().is_terminal()
}

/// Columns and rows, if there is a terminal.
pub(crate) fn size() -> Option<(u32, u32)> {
    let (width, height) = terminal_size::terminal_size()?;
    Some((u32::from(width.0), u32::from(height.0)))
}
