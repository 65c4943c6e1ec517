//! Several nodes in one process, with real TLS on loopback and real disks: founding, failing, coming back.

mod harness;
mod life;
mod quorum;
mod writes;
