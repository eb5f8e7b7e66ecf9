//! The writers with which `tracing_subscriber` hands lines to the outputs.

use std::io;

use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

use super::outputs::Outputs;
use super::queue::LogLine;

/// Makes a [`LineWriter`] for each event of an output, which knows whether the event is important.
#[derive(Debug)]
pub(super) struct OutputWriter {
    outputs: Outputs,
    index: usize,
    is_important: fn(&Metadata<'_>) -> bool,
}

impl OutputWriter {
    /// Makes the writer of the output with this number.
    pub(super) fn new(
        outputs: Outputs,
        index: usize,
        is_important: fn(&Metadata<'_>) -> bool,
    ) -> Self {
        Self { outputs, index, is_important }
    }
}

impl<'a> MakeWriter<'a> for OutputWriter {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter { outputs: &self.outputs, index: self.index, is_important: false }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> LineWriter<'a> {
        LineWriter { is_important: (self.is_important)(event), ..self.make_writer() }
    }
}

/// Queues one line for an output.
#[derive(Debug)]
pub(super) struct LineWriter<'a> {
    outputs: &'a Outputs,
    index: usize,
    is_important: bool,
}

impl io::Write for LineWriter<'_> {
    /// Takes a complete line, as `tracing_subscriber` writes it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.outputs.send(self.index, LogLine::new(line.to_vec(), self.is_important));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
