//! Nobody walks around a strict route: one scenario per technique. What each is, and what closes it:
//! docs/security.md.
//!
//! In each the technique first reaches the manager without hnp; then the manager's network is sniffed
//! while the same technique is tried with an agent that is alive, killed, and restarting.

mod datagrams;
mod guarded;
mod neighbours;
mod places;
mod requests;
mod sockets;

/// A test of the name given, which judges a trial.
macro_rules! judge {
    ($($(#[$meta:meta])* $name:ident: $trial:expr;)*) => {
        $($(#[$meta])* #[test] fn $name() { $trial.judge(); })*
    };
}
use judge;
