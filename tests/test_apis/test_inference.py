from mmdet.apis import DetInferencer
from small_model import CLASSES, write_images, write_model


def test_inferencer_by_config_and_weights_and_by_weights_alone(tmp_path):
    write_images(tmp_path / 'images')
    write_model(tmp_path)
    image = str(tmp_path / 'images' / 'image0.png')
    results = []
    for config in (str(tmp_path / 'small.py'), None):
        inferencer = DetInferencer(config, str(tmp_path / 'small.pth'), device='cpu', show_progress=False)
        assert tuple(inferencer.model.dataset_meta['classes']) == CLASSES
        results.append(inferencer(image)['predictions'][0])
    assert results[0] == results[1] and len(results[0]['scores']) > 20
