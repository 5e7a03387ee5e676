"""The op table. Importing this package fills it: one file of rows per class of ops."""

from gossamer.program.ops import compute as compute
from gossamer.program.ops import movement as movement
from gossamer.program.ops import own as own
from gossamer.program.ops import pointwise as pointwise
from gossamer.program.ops.table import Op as Op
from gossamer.program.ops.table import add as add
from gossamer.program.ops.table import bind as bind
from gossamer.program.ops.table import function as function
from gossamer.program.ops.table import op_of as op_of
from gossamer.program.ops.table import rows as rows
from gossamer.program.ops.table import with_arguments as with_arguments
