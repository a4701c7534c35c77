//! One JSON document on each line.

use memchr::memchr;

use super::{Deframer, Frame, LONGEST, Unframed};

#[derive(Default)]
pub struct JsonLines {
    /// A line that has not ended yet.
    line: Vec<u8>,
}

impl Deframer for JsonLines {
    fn push(&mut self, mut bytes: &[u8], each: &mut dyn FnMut(Frame<'_>)) -> Result<(), Unframed> {
        while let Some(end) = memchr(b'\n', bytes) {
            match self.line.is_empty() {
                true => take_line(&bytes[..end], each),
                false => {
                    self.line.extend_from_slice(&bytes[..end]);
                    take_line(&self.line, each);
                    self.line.clear();
                }
            }
            bytes = &bytes[end + 1..];
        }
        self.line.extend_from_slice(bytes);
        match self.line.len() > LONGEST {
            true => Err(Unframed::TooLong),
            false => Ok(()),
        }
    }

    fn finish(&mut self, each: &mut dyn FnMut(Frame<'_>)) -> Result<(), Unframed> {
        take_line(&std::mem::take(&mut self.line), each);
        Ok(())
    }
}

fn take_line(line: &[u8], each: &mut dyn FnMut(Frame<'_>)) {
    let data = line.trim_ascii();
    if !data.is_empty() {
        each(Frame { event: None, data });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_same_wherever_the_stream_is_cut() {
        let text = b"{\"a\":1}\r\n\n{\"b\":\"\xc3\xa9\"}\n{}";
        for cut in 0..=text.len() {
            let (mut lines, mut found) = (JsonLines::default(), Vec::new());
            let mut each = |frame: Frame<'_>| found.push(frame.data.to_vec());
            lines.push(&text[..cut], &mut each).unwrap();
            lines.push(&text[cut..], &mut each).unwrap();
            lines.finish(&mut each).unwrap();
            assert_eq!(found, [&b"{\"a\":1}"[..], b"{\"b\":\"\xc3\xa9\"}", b"{}"], "cut at {cut}");
        }
    }
}
