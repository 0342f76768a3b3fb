import pytest

from yolov7_simple.runtime.files import find_inputs, remove_partial, replacing
from yolov7_simple.runtime.names import result_names


def test_find_inputs_and_names(tmp_path):
    for name in ('b.JPG', 'a.png', 'notes.txt', 'sub/a.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('')
    found = find_inputs([str(tmp_path), str(tmp_path / '**/a.png')], {'.png', '.jpg'})
    assert found == [tmp_path / 'a.png', tmp_path / 'b.JPG', tmp_path / 'sub/a.png']
    names = result_names(found)
    assert names[1] == 'b.JPG' and len(set(names)) == 3 and names[2].endswith('sub_a.png')


def test_nothing_half_written_stays(tmp_path):
    target = tmp_path / 'out.json'
    target.write_text('old')
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text('ne')
        raise RuntimeError
    assert target.read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_process_was_writing_can_be_removed(tmp_path):
    others = ['epoch_1.pth', 'notes.part.pth', '.hidden.pth']
    for name in others:
        (tmp_path / name).write_text('whole')
    for name in ('epoch_2.pth', 'last_checkpoint'):
        with pytest.raises(FileNotFoundError), replacing(tmp_path / name) as temporary:
            temporary.write_text('torn')
            temporary.rename(tmp_path / 'kept')  # as if the process had ended here
        (tmp_path / 'kept').rename(temporary)
    remove_partial(tmp_path, '*.pth')
    assert sorted(path.name for path in tmp_path.glob('.last*')) == [temporary.name]
    remove_partial(tmp_path, 'last_checkpoint')
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
