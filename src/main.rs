//! The binary: parse, run, exit code.
//! Never knows a command. Invariant: every way out passes through the command's exit table.

use std::process::ExitCode;

use walmgr::cli::{self, Parsed};
use walmgr::error::{ExitTable, Result};
use walmgr::{abnormal, memory, output};

#[global_allocator]
static ALLOCATOR: memory::EndWhenExhausted = memory::EndWhenExhausted;

fn main() -> ExitCode {
    // For the time until the command is known: 1 is in every table but xrestore's.
    let table = abnormal::table_at_start();
    abnormal::prepare(table);
    abnormal::heed_children();
    // Before anything can need much stack, and only where PostgreSQL looks at the exit code: a
    // daemon that crashes should leave a core behind. Not before the code was chosen.
    if table != ExitTable::Ordinary {
        memory::exit_on_crashes();
    }
    ExitCode::from(abnormal::contain(table, || {
        match cli::parse(std::env::args_os()) {
            Parsed::Print(page) => code(ExitTable::Ordinary, output::print(page.trim_end())),
            Parsed::Sample => code(ExitTable::Ordinary, cli::print_sample()),
            Parsed::Generate(kind, folder) => {
                code(ExitTable::Ordinary, cli::generate(kind, &folder))
            }
            Parsed::Usage(error, table) => code(table, Err(error)),
            Parsed::Run(invocation) => {
                let table = match table {
                    ExitTable::Xrestore => table,
                    _ => invocation.exit_table(),
                };
                abnormal::prepare(table);
                abnormal::contain(table, || code(table, cli::run(&invocation)))
            }
        }
    }))
}

fn code(table: ExitTable, result: Result<()>) -> u8 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            output::failure(&error);
            table.code(error.kind())
        }
    }
}
