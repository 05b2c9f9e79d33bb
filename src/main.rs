//! The binary: parse, run, exit code.
//! Never knows a command. Invariant: every way out passes through the command's exit table.

use std::process::ExitCode;

use walmgr::cli::{self, Parsed};
use walmgr::error::{ExitTable, Result};
use walmgr::{abnormal, memory, output};

#[global_allocator]
static ALLOCATOR: memory::EndWhenExhausted = memory::EndWhenExhausted;

fn main() -> ExitCode {
    // Before anything can need much stack: the code is set below, once the command is known.
    memory::exit_on_crashes();
    // For the time until the command is known; 1 is in every table.
    abnormal::prepare(ExitTable::Ordinary);
    ExitCode::from(abnormal::contain(
        ExitTable::Ordinary,
        || match cli::parse(std::env::args_os()) {
            Parsed::Print(page) => code(ExitTable::Ordinary, output::print(page.trim_end())),
            Parsed::Sample => code(ExitTable::Ordinary, cli::print_sample()),
            Parsed::Usage(error, table) => code(table, Err(error)),
            Parsed::Run(invocation) => {
                let table = invocation.command.exit_table();
                abnormal::prepare(table);
                abnormal::contain(table, || code(table, cli::run(&invocation)))
            }
        },
    ))
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
