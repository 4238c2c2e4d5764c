package attention

import (
	"errors"
	"io"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	// Registers the codec of all messages without tensors.
	protocodec "google.golang.org/grpc/encoding/proto"
)

// codec sends messages that lend their tensors, and receives tensors into memory of
// their own, with one copy. Other messages are protobuf's.
type codec struct{}

var protobufCodec = encoding.GetCodecV2(protocodec.Name)

// Name is part of the content type: these are protobuf's messages.
func (codec) Name() string { return protocodec.Name }

// Marshal gives gRPC the message's buffers.
func (codec) Marshal(message any) (mem.BufferSlice, error) {
	if out, ok := message.(*outgoing); ok {
		return out.take(), nil
	}
	return protobufCodec.Marshal(message)
}

// Unmarshal reads a message.
func (codec) Unmarshal(data mem.BufferSlice, message any) error {
	if in, ok := message.(incoming); ok {
		return in.decode(newReader(data))
	}
	return protobufCodec.Unmarshal(data, message)
}

// incoming is a message that reads itself.
type incoming interface {
	decode(*reader) error
}

// outgoing is an encoded message, to be sent once.
type outgoing struct {
	buffers mem.BufferSlice
	bytes   int
	// What is lent; nil where all was copied.
	lease *lease
}

func (o *outgoing) take() mem.BufferSlice {
	taken := o.buffers
	o.buffers = nil
	return taken
}

// release ends the message's part in the lease, whether or not it was sent. To be
// called when the call has ended. The leaseEnd is nil where nothing was lent.
func (o *outgoing) release() *leaseEnd {
	o.take().Free()
	if o.lease == nil {
		return nil
	}
	end := o.lease.end
	o.lease.close()
	o.lease = nil
	return end
}

// Shorter runs are copied: a buffer for each would cost more.
const leastLent = 8 << 10

// writer writes a protobuf message whose large parts are lent.
type writer struct {
	parts []part
	bytes int
	// Memory of the first part, from gRPC's pool; nil if it is not from there. Such a
	// message can be finished once only.
	pooled *[]byte
}

type part struct {
	bytes []byte
	lent  bool
}

// small appends to bytes of the writer's own.
func (w *writer) small(add func([]byte) []byte) {
	if n := len(w.parts); n == 0 || w.parts[n-1].lent {
		w.parts = append(w.parts, part{})
	}
	last := &w.parts[len(w.parts)-1]
	before := len(last.bytes)
	last.bytes = add(last.bytes)
	w.bytes += len(last.bytes) - before
}

// reserve makes room for small bytes, in memory that gRPC uses again. To be called
// first.
func (w *writer) reserve(bytes int) {
	w.pooled = mem.DefaultBufferPool().Get(bytes)
	w.parts = append(w.parts, part{bytes: (*w.pooled)[:0]})
}

// raw appends bytes; large ones are lent.
func (w *writer) raw(data []byte) {
	if len(data) < leastLent {
		w.small(func(b []byte) []byte { return append(b, data...) })
		return
	}
	w.parts = append(w.parts, part{bytes: data, lent: true})
	w.bytes += len(data)
}

func (w *writer) header(field protowire.Number, bytes int) {
	w.small(func(b []byte) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.BytesType), uint64(bytes))
	})
}

// message appends a message in a field. inner is of no use afterwards.
func (w *writer) message(field protowire.Number, inner *writer) {
	w.header(field, inner.bytes)
	for _, p := range inner.parts {
		if p.lent {
			w.parts = append(w.parts, p)
			w.bytes += len(p.bytes)
		} else {
			w.small(func(b []byte) []byte { return append(b, p.bytes...) })
		}
	}
}

// fields appends the fields of a message without tensors.
func (w *writer) fields(message proto.Message) error {
	var err error
	w.small(func(b []byte) []byte {
		var encoded []byte
		if encoded, err = (proto.MarshalOptions{}).MarshalAppend(b, message); err != nil {
			return b
		}
		return encoded
	})
	return err
}

// Of attention.v1.Tensor.
const (
	tensorDataType protowire.Number = 1
	tensorShape    protowire.Number = 2
	tensorData     protowire.Number = 3
)

// tensor appends a tensor whose elements are runs of bytes, one after another.
func (w *writer) tensor(field protowire.Number, dataType DataType, shape []int, runs ...[]byte) {
	dataBytes := 0
	for _, run := range runs {
		dataBytes += len(run)
	}
	shapeBytes := 0
	for _, length := range shape {
		shapeBytes += protowire.SizeVarint(uint64(length))
	}
	var room [64]byte
	head := room[:0]
	if dataType != TypeUnspecified {
		head = protowire.AppendTag(head, tensorDataType, protowire.VarintType)
		head = protowire.AppendVarint(head, uint64(dataType))
	}
	if len(shape) > 0 {
		head = protowire.AppendTag(head, tensorShape, protowire.BytesType)
		head = protowire.AppendVarint(head, uint64(shapeBytes))
		for _, length := range shape {
			head = protowire.AppendVarint(head, uint64(length))
		}
	}
	if dataBytes > 0 {
		head = protowire.AppendTag(head, tensorData, protowire.BytesType)
		head = protowire.AppendVarint(head, uint64(dataBytes))
	}
	w.header(field, len(head)+dataBytes)
	w.raw(head)
	for _, run := range runs {
		w.raw(run)
	}
}

// optionalTensor appends a tensor unless there is none.
func (w *writer) optionalTensor(field protowire.Number, t Tensor) {
	if !t.IsZero() {
		w.tensor(field, t.dataType, t.shape, t.data)
	}
}

// finish is the message, lent by a lease of its own.
func (w *writer) finish() *outgoing {
	out := &outgoing{bytes: w.bytes}
	parts := w.parts
	if w.pooled != nil && len(parts[0].bytes) <= len(*w.pooled) { // It has not moved.
		*w.pooled = parts[0].bytes
		out.buffers = append(out.buffers, mem.NewBuffer(w.pooled, mem.DefaultBufferPool()))
		w.pooled, w.parts = nil, nil
		parts = parts[1:]
	}
	for _, p := range parts {
		if !p.lent {
			out.buffers = append(out.buffers, mem.SliceBuffer(p.bytes))
			continue
		}
		if out.lease == nil {
			out.lease = newLease()
		}
		out.buffers = append(out.buffers, out.lease.lend(p.bytes))
	}
	return out
}

var errWire = errors.New("the message cannot be read")

// reader reads a protobuf message that lies in many buffers.
type reader struct {
	buffers mem.BufferSlice
	// What is left of the buffer before buffers.
	current []byte
	// Bytes to the end of the message that is read.
	left int
}

func newReader(data mem.BufferSlice) *reader {
	return &reader{buffers: data, left: data.Len()}
}

// more makes current not empty.
func (r *reader) more() error {
	for len(r.current) == 0 {
		if len(r.buffers) == 0 {
			return io.ErrUnexpectedEOF
		}
		r.current = r.buffers[0].ReadOnlyData()
		r.buffers = r.buffers[1:]
	}
	return nil
}

func (r *reader) varint() (uint64, error) {
	var value uint64
	for shift := uint(0); shift < 70; shift += 7 {
		if r.left == 0 {
			return 0, io.ErrUnexpectedEOF
		}
		if err := r.more(); err != nil {
			return 0, err
		}
		next := r.current[0]
		r.current = r.current[1:]
		r.left--
		if shift == 63 && next > 1 {
			return 0, errWire
		}
		value |= uint64(next&0x7f) << shift
		if next < 0x80 {
			return value, nil
		}
	}
	return 0, errWire
}

// length is the length of a field, which is in the message.
func (r *reader) length() (int, error) {
	length, err := r.varint()
	if err != nil {
		return 0, err
	}
	if length > uint64(r.left) {
		return 0, io.ErrUnexpectedEOF
	}
	return int(length), nil
}

// into reads as many bytes as fit.
func (r *reader) into(to []byte) error {
	if len(to) > r.left {
		return io.ErrUnexpectedEOF
	}
	r.left -= len(to)
	for len(to) > 0 {
		if err := r.more(); err != nil {
			return err
		}
		n := copy(to, r.current)
		r.current = r.current[n:]
		to = to[n:]
	}
	return nil
}

func (r *reader) skip(n int) error {
	if n > r.left {
		return io.ErrUnexpectedEOF
	}
	r.left -= n
	for n > 0 {
		if err := r.more(); err != nil {
			return err
		}
		step := min(n, len(r.current))
		r.current = r.current[step:]
		n -= step
	}
	return nil
}

// bytes reads a field of bytes.
func (r *reader) bytes() ([]byte, error) {
	n, err := r.length()
	if err != nil {
		return nil, err
	}
	data := newData(n)
	return data, r.into(data)
}

// each calls handle for each field of the message, until its end. What handle does
// not read, and says so, is skipped.
func (r *reader) each(handle func(field protowire.Number, kind protowire.Type) (read bool, err error)) error {
	for r.left > 0 {
		field, kind, err := r.tag()
		if err != nil {
			return err
		}
		read, err := handle(field, kind)
		if err != nil {
			return err
		}
		if !read {
			if err := r.skipField(field, kind, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *reader) tag() (protowire.Number, protowire.Type, error) {
	tag, err := r.varint()
	if err != nil {
		return 0, 0, err
	}
	field, kind := protowire.DecodeTag(tag)
	if field < protowire.MinValidNumber || field > protowire.MaxValidNumber {
		return 0, 0, errWire
	}
	return field, kind, nil
}

const deepestGroup = 100

func (r *reader) skipField(field protowire.Number, kind protowire.Type, depth int) error {
	switch kind {
	case protowire.VarintType:
		_, err := r.varint()
		return err
	case protowire.Fixed32Type:
		return r.skip(4)
	case protowire.Fixed64Type:
		return r.skip(8)
	case protowire.BytesType:
		n, err := r.length()
		if err != nil {
			return err
		}
		return r.skip(n)
	case protowire.StartGroupType:
		for depth < deepestGroup {
			inner, innerKind, err := r.tag()
			if err != nil {
				return err
			}
			if innerKind == protowire.EndGroupType {
				if inner != field {
					return errWire
				}
				return nil
			}
			if err := r.skipField(inner, innerKind, depth+1); err != nil {
				return err
			}
		}
	}
	return errWire
}

// within reads a field of bytes as a message.
func (r *reader) within(read func() error) error {
	n, err := r.length()
	if err != nil {
		return err
	}
	after := r.left - n
	r.left = n
	if err := read(); err != nil {
		return err
	}
	if r.left != 0 {
		return errWire
	}
	r.left = after
	return nil
}

// tensor reads a field of a Tensor into t, on top of what is in it.
func (r *reader) tensor(t *Tensor) error {
	if t.shape == nil {
		t.shape = []int{} // There is a tensor.
	}
	return r.within(func() error {
		return r.each(func(field protowire.Number, kind protowire.Type) (bool, error) {
			switch {
			case field == tensorDataType && kind == protowire.VarintType:
				value, err := r.varint()
				t.dataType = DataType(int32(uint32(value)))
				return true, err
			case field == tensorShape && kind == protowire.VarintType:
				length, err := r.varint()
				t.shape = append(t.shape, int(int64(length)))
				return true, err
			case field == tensorShape && kind == protowire.BytesType:
				return true, r.within(func() error {
					for r.left > 0 {
						length, err := r.varint()
						if err != nil {
							return err
						}
						t.shape = append(t.shape, int(int64(length)))
					}
					return nil
				})
			case field == tensorData && kind == protowire.BytesType:
				var err error
				t.data, err = r.bytes()
				return true, err
			}
			return false, nil
		})
	})
}

// proto reads a field of bytes as a message without tensors, on top of what is in
// it.
func (r *reader) proto(message proto.Message) error {
	data, err := r.bytes()
	if err != nil {
		return err
	}
	return proto.UnmarshalOptions{Merge: true}.Unmarshal(data, message)
}
