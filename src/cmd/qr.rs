//! QR codes in a terminal.

use fast_qr::{QRBuilder, QRCode};

/// Light squares around a code (ISO/IEC 18004).
const MARGIN: usize = 4;

/// The lines of a code for this text.
pub(super) fn drawn(text: String) -> anyhow::Result<String> {
    let code = QRBuilder::new(text).build();
    let code = code.map_err(|error| anyhow::anyhow!("no QR code has room for it: {error:?}"))?;
    Ok(shown(&code))
}

/// Two rows of squares in each line, light ones drawn, as terminals are dark.
fn shown(code: &QRCode) -> String {
    let is_light = |row: usize, column: usize| {
        let inside = |at: usize| at.checked_sub(MARGIN).filter(|at| *at < code.size);
        let square = inside(row).zip(inside(column));
        square.is_none_or(|(row, column)| !code[row][column].value())
    };
    let whole = code.size + 2 * MARGIN;
    let line = |row: usize| {
        let square = |column| match (is_light(row, column), is_light(row + 1, column)) {
            (true, true) => '█',
            (true, false) => '▀',
            (false, true) => '▄',
            (false, false) => ' ',
        };
        (0..whole).map(square).collect::<String>()
    };
    (0..whole).step_by(2).map(line).collect::<Vec<_>>().join("\n")
}
