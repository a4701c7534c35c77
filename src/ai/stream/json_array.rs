//! A JSON array whose elements come one by one, as Gemini streams without `alt=sse`.

use super::{Deframer, Frame, LONGEST, Unframed};

/// What ends the array.
pub const END: &[u8] = b"]";

/// Appends what stands before an element: `begun` says whether there is one before it.
pub fn begin(begun: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(if begun { b",\r\n" } else { b"[" });
}

/// Reads elements. They are told apart by brackets outside of texts, and are not read otherwise. A document that is no array
/// is one element.
#[derive(Default)]
pub struct JsonArray {
    element: Vec<u8>,
    place: Place,
    /// Brackets that are open inside of the element.
    depth: usize,
    in_text: bool,
    escaped: bool,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum Place {
    #[default]
    Before,
    Between,
    Inside,
    After,
}

impl JsonArray {
    fn take(&mut self, byte: u8, each: &mut dyn FnMut(Frame<'_>)) -> Result<(), Unframed> {
        match self.place {
            Place::Inside => {
                self.element.push(byte);
                if self.in_text {
                    self.in_text = self.escaped || byte != b'"';
                    self.escaped = byte == b'\\' && !self.escaped;
                    return Ok(());
                }
                match byte {
                    b'"' => self.in_text = true,
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => {
                        self.depth -= 1;
                        if self.depth == 0 {
                            each(Frame { event: None, data: &self.element });
                            self.element.clear();
                            self.place = Place::Between;
                        }
                    }
                    _ => {}
                }
                Ok(())
            }
            _ if byte.is_ascii_whitespace() => Ok(()),
            Place::Before if byte == b'[' => {
                self.place = Place::Between;
                Ok(())
            }
            Place::Before | Place::Between if byte == b'{' => {
                self.place = Place::Inside;
                self.element.push(byte);
                self.depth = 1;
                Ok(())
            }
            Place::Between if byte == b',' => Ok(()),
            Place::Between if byte == b']' => {
                self.place = Place::After;
                Ok(())
            }
            _ => Err(Unframed::Malformed),
        }
    }
}

impl Deframer for JsonArray {
    fn push(&mut self, bytes: &[u8], each: &mut dyn FnMut(Frame<'_>)) -> Result<(), Unframed> {
        for byte in bytes {
            self.take(*byte, each)?;
        }
        match self.element.len() > LONGEST {
            true => Err(Unframed::TooLong),
            false => Ok(()),
        }
    }

    fn finish(&mut self, _each: &mut dyn FnMut(Frame<'_>)) -> Result<(), Unframed> {
        match self.place {
            Place::Inside => Err(Unframed::Malformed),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&[u8]]) -> (Vec<String>, Result<(), Unframed>) {
        let (mut array, mut found) = (JsonArray::default(), Vec::new());
        let mut each = |frame: Frame<'_>| found.push(String::from_utf8_lossy(frame.data).into_owned());
        let mut end = pieces.iter().try_for_each(|piece| array.push(piece, &mut each));
        if end.is_ok() {
            end = array.finish(&mut each);
        }
        (found, end)
    }

    #[test]
    fn elements_are_the_same_wherever_the_stream_is_cut() {
        let text = "[{\"a\": \"}]\\\"\u{e9}\\\\\"}\n,\r\n{\"b\":[{},[]]}\n]\n".as_bytes();
        for cut in 0..=text.len() {
            let (found, end) = read(&[&text[..cut], &text[cut..]]);
            assert_eq!(found, ["{\"a\": \"}]\\\"\u{e9}\\\\\"}", "{\"b\":[{},[]]}"], "cut at {cut}");
            assert_eq!(end, Ok(()));
        }
    }

    #[test]
    fn an_error_that_is_no_array_is_one_element() {
        assert_eq!(read(&[b"{\"error\":{}}"]), (vec!["{\"error\":{}}".to_owned()], Ok(())));
    }

    #[test]
    fn what_is_no_array_of_objects_or_breaks_off_is_refused() {
        for text in ["data: {}", "[1]", "[{}] x", "[{", "[{\"a\":\"}"] {
            assert_eq!(read(&[text.as_bytes()]).1, Err(Unframed::Malformed), "{text}");
        }
    }

    #[test]
    fn an_element_without_an_end_is_given_up() {
        let (mut array, piece) = (JsonArray::default(), vec![b' '; 1 << 20]);
        array.push(b"[{", &mut |_| ()).unwrap();
        let pushed = (0..).take_while(|_| array.push(&piece, &mut |_| ()).is_ok()).count();
        assert!(pushed << 20 <= LONGEST);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut out = Vec::new();
        for begun in [false, true] {
            begin(begun, &mut out);
            out.extend_from_slice(b"{}");
        }
        out.extend_from_slice(END);
        assert_eq!(read(&[&out]), (vec!["{}".to_owned(), "{}".to_owned()], Ok(())));
    }
}
